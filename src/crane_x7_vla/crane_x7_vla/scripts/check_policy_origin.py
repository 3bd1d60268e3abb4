"""What a model directory says of how its model is run, and the checkpoint of the training that it comes from."""

from __future__ import annotations

import json
from pathlib import Path

from crane_x7_vla.backends.minivla.config import VQ_FOLDER, MiniVLAConfig
from crane_x7_vla.backends.minivla.vq import is_same
from crane_x7_vla.backends.openvla.backend import MERGED
from crane_x7_vla.backends.restoring import check_directory
from crane_x7_vla.checkpoints.adapters import MERGE_INFO
from crane_x7_vla.checkpoints.vq import load_vq
from crane_x7_vla.config.yaml import CONFIG_NAME, load_config
from crane_x7_vla.data.statistics import FILE_NAME as STATISTICS_FILE
from crane_x7_vla.data.statistics import load_statistics
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.policies.diagnosis import Deployment
from crane_x7_vla.training.record import FILE_NAME as RECORD_FILE


def read_deployment(directory: Path, *, instruction: str | None = None) -> Deployment:
    """How a merged model or a checkpoint-N is run. instruction: None for that of its training."""
    check_directory(directory)
    config = load_config(directory / CONFIG_NAME)
    has_vq = isinstance(config, MiniVLAConfig) and config.minivla.vq.enabled
    return Deployment(
        config=config,
        statistics=load_statistics(directory / STATISTICS_FILE),
        instruction=config.data.instruction if instruction is None else instruction,
        vq=load_vq(directory / VQ_FOLDER) if has_vq else None,
    )


def checkpoint_of(model: Path) -> Path | None:
    """The checkpoint-N that training wrote and ``model`` is, or was merged from; None where it is not known or gone."""
    if (model / RECORD_FILE).is_file():
        return model
    if (parent := _around(model)) is not None:
        return parent
    info = model / MERGE_INFO
    if not info.is_file():
        return None
    try:
        checkpoint = Path(json.loads(info.read_text(encoding="utf-8"))["adapter_path"]).parent
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{info} is damaged ({error}); name the checkpoint with --checkpoint") from error
    return checkpoint if (checkpoint / CONFIG_NAME).is_file() else None


def default_picture(model: Path) -> Path:
    """Beside the model, and never in a checkpoint."""
    whole, around = model.resolve(), _around(model)
    return (
        whole.with_name(f"{whole.name}_check.png")
        if around is None
        else around.with_name(f"{around.name}_{whole.name}_check.png")
    )


def refuse_difference(model: Path, deployed: Deployment, checkpoint: Path, trained: Deployment) -> None:
    """Raise CheckpointError where the model cannot do what training did, whatever the frames: what a chunk is differs,
    or what its codes mean."""
    ours, theirs = deployed.config, trained.config
    for setting, value, wanted in (
        ("backend", ours.backend, theirs.backend),
        ("robot", ours.robot, theirs.robot),
        ("action_horizon", ours.action_horizon, theirs.action_horizon),
        ("data.action_source", ours.data.action_source, theirs.data.action_source),
        ("data.control_hz", ours.data.control_hz, theirs.data.control_hz),
    ):
        if value != wanted:
            raise CheckpointError(
                f"{setting} is {value!r} in {model / CONFIG_NAME}, but {wanted!r} in {checkpoint / CONFIG_NAME}, "
                "with which it was trained; use the same"
            )
    if deployed.vq is not None and trained.vq is not None and not is_same(deployed.vq, trained.vq):
        raise CheckpointError(
            f"Likely cause: vq: {model / VQ_FOLDER} is another than the VQ of its training, so codes mean other "
            f"actions; replace it by {checkpoint / VQ_FOLDER}"
        )


def _around(model: Path) -> Path | None:
    """The checkpoint-N whose whole model, see ``skip_merge_on_save``, this is."""
    whole = model.resolve()
    return whole.parent if whole.name == MERGED and (whole.parent / RECORD_FILE).is_file() else None
