"""Fixtures that tests of several parts share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crane_x7_vla.backends import backend_class
from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.config.yaml import dump_config
from crane_x7_vla.data.episode import CameraMetadata, EpisodeMetadata, EpisodeWriter, Step, encode_jpeg
from crane_x7_vla.data.statistics import DatasetStatistics, compute_statistics, to_json
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.types import Observation


@pytest.fixture(scope="session")
def tiny_statistics() -> DatasetStatistics:
    """Of states within 0.4 rad and relative actions within 0.12 rad."""
    rng = np.random.default_rng(0)
    states = rng.uniform(-0.4, 0.4, (200, 8)).astype(np.float32)
    rows = rng.uniform(-0.12, 0.12, (400, 8)).astype(np.float32)
    return compute_statistics(states, rows, num_trajectories=4, fingerprint="test")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_statistics: DatasetStatistics) -> Path:
    """A base model in the published layout, tiny, with random weights."""
    directory = tmp_path_factory.mktemp("tiny_base")
    backend = backend_class("openvla-oft")(OpenVLAOFTConfig.tiny(), robot=CRANE_X7, statistics=tiny_statistics)
    backend.save(backend.build(), directory)
    return directory


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, tiny_base: Path, tiny_statistics: DatasetStatistics) -> Path:
    """outputs/tiny/checkpoint-10 as training with adapters leaves it, the adapters moved away from zero."""
    import torch

    tiny = OpenVLAOFTConfig.tiny()
    config = dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, action_source="commanded"),
        openvla_oft=dataclasses.replace(tiny.openvla_oft, model_id=str(tiny_base), use_lora=True),
    )
    backend = backend_class("openvla-oft")(config, robot=CRANE_X7, statistics=tiny_statistics)
    model = backend.build()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or "action_head" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    directory = tmp_path / "outputs" / "tiny" / "checkpoint-10"
    directory.mkdir(parents=True)
    backend.save(model, directory)
    (directory / "config.yaml").write_text(dump_config(config))
    (directory / "dataset_statistics.json").write_text(to_json(tiny_statistics))
    return directory


@pytest.fixture
def make_observation() -> Callable[[int], Observation]:
    """Observations by seed, with the two cameras and a state within the statistics."""

    def make(seed: int) -> Observation:
        rng = np.random.default_rng(seed)
        return Observation(
            images={name: rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for name in ("primary", "wrist")},
            state=rng.uniform(-0.3, 0.3, 8).astype(np.float32),
            instruction="pick up the red cube",
            stamp=float(seed),
        )

    return make


@pytest.fixture(scope="session")
def record_episodes() -> Callable[..., Path]:
    """Write small episodes of an arm that moves to random poses under a folder, which is returned.

    The wrist shows the pictures of the others backwards, so that models have to tell the cameras apart.
    """

    def record(
        root: Path,
        n_episodes: int,
        *,
        n_steps: int = 6,
        cameras: tuple[str, ...] = ("primary", "wrist"),
        size: tuple[int, int] = (32, 24),
        hz: float = 10.0,
        robot: str = CRANE_X7.name,
        commanded: bool = True,
        seed: int = 0,
    ) -> Path:
        rng = np.random.default_rng(seed)
        width, height = size
        for _ in range(n_episodes):
            metadata = EpisodeMetadata(
                robot=robot,
                hz=hz,
                instruction="pick up the red cube",
                cameras={name: CameraMetadata(width=width, height=height) for name in cameras},
                joint_names=CRANE_X7.joint_names,
            )
            writer = EpisodeWriter(root, metadata)
            state = np.array(CRANE_X7.home, dtype=np.float32)
            goal = (state + rng.uniform(-0.5, 0.5, state.size)).astype(np.float32)
            pictures = [encode_jpeg(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(n_steps)]
            for index in range(n_steps):
                after = (state + 0.2 * (goal - state)).astype(np.float32)
                writer.write(
                    Step(
                        images={name: pictures[-1 - index if name == "wrist" else index] for name in cameras},
                        state=state,
                        action=after,
                        commanded=after + np.float32(0.01) if commanded else None,
                        instruction="pick up the red cube",
                        stamp=index / hz,
                    )
                )
                state = after
            writer.finish(success=True)
        return root

    return record
