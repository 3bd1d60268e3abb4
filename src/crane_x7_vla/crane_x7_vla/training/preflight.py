"""Device and precision, and what is checked before anything heavy starts."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from crane_x7_vla.backends.device import torch_device
from crane_x7_vla.checkpoints.base_model import is_same_model
from crane_x7_vla.config.base import TrainingConfig, VLAConfig
from crane_x7_vla.config.schema import settings, value_at
from crane_x7_vla.config.yaml import CONFIG_NAME, load_config
from crane_x7_vla.errors import CheckpointError, ConfigError, DataError
from crane_x7_vla.models.precision import autocast_type
from crane_x7_vla.training.distributed import World
from crane_x7_vla.training.loading import EpisodeSplit
from crane_x7_vla.training.record import read_split

logger = logging.getLogger(__name__)

# Settings of the data that change what the model learns; others, such as workers, may change when a run goes on.
_FIXED_DATA = ("cameras", "instruction", "control_hz", "action_source")


# How the VQ was made and where it lies; a checkpoint has its own, and ``Backend.check_base`` compares the two.
_OF_THE_VQ = tuple(f"minivla.vq.{name}" for name in ("path", "steps", "batch_size", "learning_rate"))


def check_device(training: TrainingConfig) -> None:
    """Raise ConfigError where the device is not there, or cannot compute in the precision asked for."""
    if torch_device(training.device).type == "cuda":
        if training.mixed_precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise ConfigError("this GPU has no bf16; use --mixed-precision fp16")
    elif training.mixed_precision == "fp16":
        raise ConfigError("mixed_precision fp16 needs a GPU; on the CPU use --mixed-precision no, or bf16")


def device_of(training: TrainingConfig, world: World) -> torch.device:
    """The device of this process: under torchrun the GPU of its local rank."""
    device = torch.device(training.device)
    if device.type != "cuda":
        return device
    # set_device wants a number, and "cuda" alone has none.
    device = torch.device("cuda", world.local_rank if world.size > 1 else device.index or 0)
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")
    return device


def autocast(training: TrainingConfig, device: torch.device) -> torch.autocast:
    """The context of a forward pass in the precision asked for."""
    dtype = autocast_type(training.mixed_precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def check_disk(folder: Path, trained: Mapping[str, Tensor], training: TrainingConfig) -> None:
    """Raise CheckpointError where not even one checkpoint would fit: weights twice, two moments, perhaps an average."""
    needed = sum(p.numel() for p in trained.values()) * 4 * (5 if training.ema_decay else 4)
    place = _nearest(folder)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"{free / 1e9:.1f} GB are free under {place}, a checkpoint takes about {needed / 1e9:.1f} GB; "
            "free some space or choose another --output-dir"
        )


def check_folder(folder: Path, *, option: str) -> None:
    """Raise ConfigError where ``folder``, named by ``option``, cannot be made or may not be written to."""
    place = _nearest(folder)
    if not place.is_dir():
        raise ConfigError(f"{place} is a file, where a folder is needed; choose another {option}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{place} may not be written to; choose another {option}, or see who owns it: ls -ld {place}")


def check_file(file: Path, *, option: str) -> None:
    """Raise ConfigError where ``file``, named by ``option``, could not be written."""
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; name a file with {option}")
    if not file.exists():
        check_folder(file.parent, option=option)
    elif not os.access(file, os.W_OK):
        raise ConfigError(f"{file} may not be written to; choose another {option}, or see who owns it: ls -l {file}")


def _nearest(path: Path) -> Path:
    """``path``, or the first of the folders above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def check_resumable(checkpoint: Path, config: VLAConfig, split: EpisodeSplit) -> None:
    """Raise unless a run of ``config`` on these episodes can go on from ``checkpoint``.

    ConfigError where the model or its data are set up differently, DataError where the training episodes are others.
    Other settings of the training and the data may differ; that is said.
    """
    if not (checkpoint / CONFIG_NAME).is_file():
        raise CheckpointError(f"no {CONFIG_NAME} in {checkpoint}; expected a checkpoint-N directory of a training run")
    before = load_config(checkpoint / CONFIG_NAME)
    if before.backend != config.backend:
        raise ConfigError(f"{checkpoint} is of backend {before.backend}, this run of {config.backend}")
    for path in settings(type(config)):
        old, new = value_at(before, path), value_at(config, path)
        section, _, name = path.partition(".")
        if old == new or path == "training.resume_from_checkpoint" or path in _OF_THE_VQ:
            continue
        if path == f"{config.block}.model_id" and old and new and is_same_model(old, new):
            continue
        if section in (config.block, "robot", "seed") or (section == "data" and name in _FIXED_DATA):
            raise ConfigError(
                f"{path} is {new!r}, but {checkpoint} was trained with {old!r}; "
                "resume with the same value, or start a new experiment"
            )
        if section in ("training", "data"):
            logger.info("%s changes from %r to %r", path, old, new)
    _, trained_on = read_split(checkpoint)
    if trained_on.fingerprint != split.fingerprint:
        raise DataError(
            f"the {len(split.train)} training episodes are not the {len(trained_on.train)} that {checkpoint} was "
            "trained on; resume with the same episodes, split and seed, or start a new experiment: --experiment-name"
        )
