"""Directories with a residual VQ of action chunks and what its numbers stand for.

config.json has the published names (vq_bet_official's, as MiniVLA ships them) and what those lack: joints, form and
units of the actions. The codebooks' running sums, which only training needs, are not kept. The weights of MiniVLA's
own training script, checkpoints/model.pt, are read too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crane_x7_vla.checkpoints.files import list_of, read_json, value_of
from crane_x7_vla.checkpoints.layouts import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_tensors,
    require_fit,
    save_tensors,
    shapes_of,
    tensor_shapes,
)
from crane_x7_vla.checkpoints.torch_files import read_torch, shapes_in, state_of
from crane_x7_vla.data.statistics import FILE_NAME as STATISTICS_FILE
from crane_x7_vla.data.statistics import DatasetStatistics, load_statistics, to_json
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.models.vq import ActionVQ, VQShape

_NAMES = {
    "action_horizon": "input_dim_h",
    "action_dim": "input_dim_w",
    "n_latent": "n_latent_dims",
    "n_embed": "vqvae_n_embed",
    "n_groups": "vqvae_groups",
}
_PUBLISHED_WEIGHTS = Path("checkpoints", "model.pt")
_PUBLISHED_PARTS = ("encoder", "decoder", "vq_embedding")
_RUNNING_SUMS = r"vq_embedding\.layers\.\d+\._codebook\.(initted|cluster_size|embed_avg)"
TRAIN_VQ = "python -m crane_x7_vla.training.cli train-vq"
"""The command that makes such a directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VQUnits:
    """What a VQ's chunks are in: see ``ActionUnits``. joint_names: of the robot, in order."""

    joint_names: tuple[str, ...]
    action_form: str
    action_source: str
    normalization: str
    span_floor: float


@dataclass(frozen=True, slots=True)
class TrainedVQ:
    """statistics: those that its chunks are scaled with."""

    vq: ActionVQ
    units: VQUnits
    statistics: DatasetStatistics


def save_vq(trained: TrainedVQ, directory: Path) -> None:
    """Write config.json, model.safetensors and dataset_statistics.json into an existing directory."""
    shape = {published: getattr(trained.vq.shape, name) for name, published in _NAMES.items()}
    config = {**shape, "act_scale": 1.0, **asdict(trained.units)}
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_tensors(directory / WEIGHTS_FILE, trained.vq.state_dict())
    (directory / STATISTICS_FILE).write_text(to_json(trained.statistics), encoding="utf-8")


def load_vq(directory: Path) -> TrainedVQ:
    """What ``save_vq`` wrote, or the published script with the units added to its config.json; strictly.

    Raises CheckpointError that names what is missing and how to train one.
    """
    if not (directory / CONFIG_FILE).is_file():
        raise CheckpointError(f"{directory} lacks {CONFIG_FILE}; copy the VQ again, or train one with: {TRAIN_VQ}")
    config = read_json(directory / CONFIG_FILE)
    shape, units = _shape(config, directory), _units(config, directory)
    with torch.device("meta"):
        vq = ActionVQ(shape)
    vq.load_state_dict(_weights(directory, shapes_of(vq)), strict=True, assign=True)
    return TrainedVQ(vq.requires_grad_(False).eval(), units, _statistics(directory))


def _statistics(directory: Path) -> DatasetStatistics:
    path = directory / STATISTICS_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{directory} lacks {path.name}, which its chunks were scaled with; copy the VQ again, or train one with: "
            f"{TRAIN_VQ}"
        )
    return load_statistics(path)


def _weights(directory: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    path, published = directory / WEIGHTS_FILE, directory / _PUBLISHED_WEIGHTS
    if path.is_file() or not published.is_file():
        files = dict.fromkeys(tensor_shapes(path), path)
        return read_tensors(files, expected, dead=None, source=path)
    parts = read_torch(published)  # the optimizer's state lies there too
    tensors = {
        f"{part}.{key}": value
        for part in _PUBLISHED_PARTS
        for key, value in state_of(parts.get(part), what=f"{published}: {part}").items()
    }
    require_fit(shapes_in(tensors), expected, dead=_RUNNING_SUMS, source=published)
    return {key: tensors[key].clone() for key in expected}


def _shape(config: dict[str, Any], directory: Path) -> VQShape:
    path = directory / CONFIG_FILE
    if config.get("act_scale", 1.0) != 1:
        raise CheckpointError(f"{path}: act_scale is {config['act_scale']}; only 1 is read")
    return VQShape(**{name: value_of(config, published, int, 1, source=path) for name, published in _NAMES.items()})


def _units(config: dict[str, Any], directory: Path) -> VQUnits:
    path = directory / CONFIG_FILE
    missing = [name for name in VQUnits.__slots__ if name not in config]
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}: a published VQ does not say what its "
            f"{config['input_dim_w']} numbers stand for; train one on this robot's actions with: {TRAIN_VQ}"
        )
    return VQUnits(
        joint_names=list_of(config, "joint_names", str, source=path),
        action_form=value_of(config, "action_form", str, source=path),
        action_source=value_of(config, "action_source", str, source=path),
        normalization=value_of(config, "normalization", str, source=path),
        span_floor=value_of(config, "span_floor", float, 0, source=path),
    )
