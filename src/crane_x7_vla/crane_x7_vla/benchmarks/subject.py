"""What is measured: a backend with random weights, which take as long as trained ones, and what it is asked."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from crane_x7_vla.backends import BACKENDS, backend_class, config_class
from crane_x7_vla.backends.base import Backend, ModelSpec
from crane_x7_vla.backends.minivla.config import MiniVLAConfig
from crane_x7_vla.backends.minivla.vq import vq_shape, vq_units
from crane_x7_vla.backends.prismatic_config import PrismaticVLAConfig
from crane_x7_vla.checkpoints.vq import TrainedVQ, save_vq
from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.config.yaml import load_config
from crane_x7_vla.data.statistics import DatasetStatistics, compute_statistics
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.models.prismatic import PrismaticModel
from crane_x7_vla.models.vq import ActionVQ
from crane_x7_vla.robot import RobotSpec, robot_spec
from crane_x7_vla.types import Observation


class MeasuredBackend(Backend, Protocol):
    """What is used of a ``PrismaticBackend`` here."""

    components: Sequence[str]

    def new_model(self) -> PrismaticModel: ...

    def bare(self, model: nn.Module) -> PrismaticModel: ...


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``chosen_config`` reads."""
    parser.add_argument("--backend", metavar="NAME", help=f"one of {', '.join(BACKENDS)}, with its default settings")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings, as training reads them, instead")
    parser.add_argument(
        "--tiny", action="store_true", help="the small dimensions of --backend that its tests use, in place of its own"
    )


def chosen_config(arguments: argparse.Namespace) -> PrismaticVLAConfig:
    """The settings asked for. Raises ConfigError."""
    if (arguments.config is None) == (arguments.backend is None):
        given = "neither is" if arguments.config is None else "both are"
        raise ConfigError(f"name what to measure with --backend NAME or with --config FILE; {given} given")
    if arguments.config is not None:
        if arguments.tiny:
            raise ConfigError("--tiny goes with --backend; in a --config, name another architecture")
        config = load_config(arguments.config)
    else:
        kind: Any = config_class(arguments.backend)
        config = _tiny(kind) if arguments.tiny else kind()
    if not isinstance(config, PrismaticVLAConfig):
        raise ConfigError(f"backend {config.backend} is not on the Prismatic trunk, so it cannot be measured yet")
    return config


def _tiny(kind: Any) -> VLAConfig:
    """The config of the tests; a MiniVLA with a VQ, which has more to decode and gives more than one action."""
    config: VLAConfig = kind.tiny()
    if isinstance(config, MiniVLAConfig):
        vq = dataclasses.replace(config.minivla.vq, enabled=True)
        return dataclasses.replace(config, minivla=dataclasses.replace(config.minivla, vq=vq))
    return config


def without_base(config: PrismaticVLAConfig) -> PrismaticVLAConfig:
    """The same from random weights, without a base model."""
    block = dataclasses.replace(config.settings, model_id=None, use_lora=False)
    data = dataclasses.replace(config.data, action_source="commanded")
    return dataclasses.replace(config, data=data, **{config.settings.block: block})


def random_backend(config: PrismaticVLAConfig) -> MeasuredBackend:
    """The backend of a config ``without_base``, with statistics, and where it needs one a VQ, of random numbers."""
    robot = robot_spec(config.robot)
    statistics = _statistics(robot)
    if not (isinstance(config, MiniVLAConfig) and config.minivla.vq.enabled):
        return backend_class(config.backend)(config, robot=robot, statistics=statistics)
    with tempfile.TemporaryDirectory() as folder:
        save_vq(TrainedVQ(ActionVQ(vq_shape(config, robot)), vq_units(config, robot), statistics), Path(folder))
        vq = dataclasses.replace(config.minivla.vq, path=folder)
        config = dataclasses.replace(config, minivla=dataclasses.replace(config.minivla, vq=vq))
        return backend_class(config.backend)(config, robot=robot, statistics=statistics)


def random_model(backend: MeasuredBackend, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The backend's model, made where and as it is to run: a full one in float32 would not fit many GPUs."""
    with torch.device(device), _default_dtype(dtype):
        return backend.new_model().eval()


def observations(
    spec: ModelSpec, robot: RobotSpec, *, count: int, height: int, width: int, instruction: str
) -> list[Observation]:
    """Images of noise, with as much of the past as the model sees."""
    rng = np.random.default_rng(0)

    def one(stamp: float, past: tuple[Observation, ...] = ()) -> Observation:
        state = robot.clamp(rng.uniform(-0.3, 0.3, robot.size))
        images = {camera.name: rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for camera in spec.cameras}
        return Observation(images=images, state=state, commanded=state, instruction=instruction, stamp=stamp, past=past)

    return [one(0.0, tuple(one(-1.0 - index) for index in range(spec.history))) for _ in range(count)]


def _statistics(robot: RobotSpec) -> DatasetStatistics:
    rows = np.random.default_rng(0).uniform(-0.3, 0.3, (100, robot.size)).astype(np.float32)
    return compute_statistics(rows, rows, num_trajectories=1, fingerprint="random")


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
