"""The train-vq command: the VQ that a MiniVLA's action tokens stand for, learnt from the user's own episodes."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from crane_x7_vla.backends.action_units import ActionUnits
from crane_x7_vla.backends.minivla.config import VQ_FOLDER, MiniVLAConfig
from crane_x7_vla.backends.minivla.vq import vq_shape, vq_units
from crane_x7_vla.backends.prismatic_processor import action_units
from crane_x7_vla.checkpoints.store import sync_tree
from crane_x7_vla.checkpoints.vq import TrainedVQ, save_vq
from crane_x7_vla.config.yaml import CONFIG_NAME, dump_config
from crane_x7_vla.data.dataset import EpisodeDataset
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.models.vq import ActionVQ
from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.training.folder import folder_of
from crane_x7_vla.training.loading import TrainingData, prepare_data
from crane_x7_vla.training.logs import as_minutes
from crane_x7_vla.training.preflight import check_folder
from crane_x7_vla.training.record import describe_run, write_run
from crane_x7_vla.training.vq_fit import FitSettings, fit

logger = logging.getLogger(__name__)

_REPORTED = 4096  # chunks whose error is measured on the way
_PART = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class VQResults:
    """directory: what --vq-path is to name. held_out: whether the errors are of chunks of held-out episodes; without
    any they are of the training ones. by_joint: float64 [A] rad, mean absolute error of reconstructed chunks. largest:
    the largest error of one number, rad. used: how many codes of each group stand for some training chunk."""

    directory: Path
    held_out: bool
    by_joint: tuple[float, ...]
    largest: float
    used: tuple[int, ...]


def train_vq(config: MiniVLAConfig) -> VQResults:
    """Learn the VQ of ``config`` from its training episodes and write OUTPUT_DIR/EXPERIMENT_NAME/vq.

    Runs on the CPU, where it takes minutes. Raises ConfigError where the folder is there already.
    """
    if not config.minivla.vq.enabled:
        raise ConfigError("minivla.vq.enabled is false, so minivla would not use a VQ; train it with --vq-enabled")
    directory = folder_of(config) / VQ_FOLDER
    if directory.exists():
        raise ConfigError(
            f"{directory} is there already; choose another --experiment-name, or remove it: rm -r {directory}"
        )
    check_folder(directory, option="--output-dir")
    data = prepare_data(config, images=False)
    config = replace(config, data=data.config.data)
    units = action_units(config, data.robot, data.statistics)
    chunks, held_out = _chunks(data.train, units), _chunks(data.val, units)
    shape, settings = vq_shape(config, data.robot), config.minivla.vq
    half_span = units.half_span(chunks.device)
    logger.info(
        "learning %d codes in each of %d groups from %d chunks of %d actions, %d updates of %d",
        shape.n_embed, shape.n_groups, len(chunks), shape.action_horizon, settings.steps, settings.batch_size,
    )  # fmt: skip

    # The first update takes as long as many, so time counts from the first report.
    reports: list[tuple[int, float]] = []

    def report(step: int, vq: ActionVQ) -> None:
        reports.append((step, time.monotonic()))
        (first, begun), (_, now) = reports[0], reports[-1]
        left = f", {as_minutes((settings.steps - step) * (now - begun) / (step - first))} left" if step > first else ""
        parts = [("", chunks[:: max(1, len(chunks) // _REPORTED)]), (" of held-out chunks", held_out)]
        errors = [f"{float(_errors(vq, part, half_span).mean()):.4f} rad{what}" for what, part in parts if len(part)]
        logger.info("update %d/%d: reconstruction error %s%s", step, settings.steps, ", ".join(errors), left)

    vq = fit(
        chunks,
        shape,
        FitSettings(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=config.seed,
        ),
        report=report,
    )
    errors = _errors(vq, held_out if len(held_out) else chunks, half_span)
    if not errors.isfinite().all():
        raise ConfigError(
            f"the reconstruction error is {float(errors.mean())}; nothing was written. Try a smaller "
            f"--vq-learning-rate than {settings.learning_rate:g}"
        )
    _write(TrainedVQ(vq, vq_units(config, data.robot), data.statistics), config, data, directory)
    codes = _codes(vq, chunks)
    return VQResults(
        directory=directory,
        held_out=len(held_out) > 0,
        by_joint=tuple(errors.double().mean((0, 1)).tolist()),
        largest=float(errors.max()),
        used=tuple(len(group.unique()) for group in codes.T),
    )


def vq_report(results: VQResults, robot: RobotSpec) -> str:
    """The table that the command prints."""
    width = max(map(len, robot.joint_names))
    mean = sum(results.by_joint) / len(results.by_joint)
    chunks = "held-out" if results.held_out else "training"
    lines = [f"{'joint':<{width}}  mean error of reconstructed {chunks} chunks"]
    lines += [
        f"{name:<{width}}  {error:.4f} rad" for name, error in zip(robot.joint_names, results.by_joint, strict=True)
    ]
    lines += [
        f"mean {mean:.4f} rad, largest {results.largest:.4f} rad; no policy on this VQ can be more exact",
        f"codes used in each group: {', '.join(map(str, results.used))}",
    ]
    return "\n".join(lines)


def _chunks(dataset: EpisodeDataset, units: ActionUnits) -> Tensor:
    """float32 [n, T, A] in model units: every chunk of a data set without images, as the model will be asked for it."""
    labels = [
        units.labels(
            sample.observation, sample.actions, action_horizon=len(sample.actions), is_pad=sample.is_pad
        )["labels"]
        for sample in dataset
    ]  # fmt: skip
    return torch.stack(labels) if labels else torch.empty(0)


@torch.inference_mode()
def _codes(vq: ActionVQ, chunks: Tensor) -> Tensor:
    # In parts: what each group leaves of every chunk at once would take gigabytes.
    return torch.cat([vq.encode(part) for part in chunks.split(_PART)])


@torch.inference_mode()
def _errors(vq: ActionVQ, chunks: Tensor, half_span: Tensor) -> Tensor:
    """Absolute errors of reconstructed chunks, rad."""
    decoded = torch.cat([vq.decode(part) for part in _codes(vq, chunks).split(_PART)])
    return (decoded - chunks).abs() * half_span


def _write(trained: TrainedVQ, config: MiniVLAConfig, data: TrainingData, directory: Path) -> None:
    """The directory appears whole or not at all."""
    unfinished = directory.with_name(f".unfinished-{directory.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_vq(trained, unfinished)
    (unfinished / CONFIG_NAME).write_text(dump_config(config), encoding="utf-8")
    write_run(unfinished, describe_run(data.split, data_root=Path(config.data.data_root), base=None))
    sync_tree(unfinished)
    unfinished.rename(directory)
