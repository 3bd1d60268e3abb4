"""The evaluate command: errors of a checkpoint on recorded episodes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from crane_x7_vla.backends.restoring import restore_backend
from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.data.dataset import EpisodeDataset, choose_action_source, image_sizes, load_episodes
from crane_x7_vla.errors import DataError
from crane_x7_vla.models.precision import autocast_type, keep_as_computed
from crane_x7_vla.robot import RobotSpec, robot_spec
from crane_x7_vla.training.distributed import World
from crane_x7_vla.training.evaluation import Evaluation, evaluate
from crane_x7_vla.training.loading import camera_sizes, choose_workers, evaluation_batches, fill_in, find_episodes
from crane_x7_vla.training.preflight import autocast, check_device, device_of
from crane_x7_vla.training.record import FILE_NAME as RECORD_NAME
from crane_x7_vla.training.record import read_split

logger = logging.getLogger(__name__)


def evaluate_checkpoint(config: VLAConfig, checkpoint: Path, *, test_data: Path | None = None) -> Evaluation:
    """Errors over every step of ``test_data``, or of the episodes held out in the run that wrote the checkpoint.

    checkpoint: a checkpoint-N, or a merged model with ``test_data``. config: the checkpoint's, but for
    ``arguments.EVALUATION_SETTINGS``. Raises ConfigError, DataError, CheckpointError.
    """
    check_device(config.training)
    device = device_of(config.training, World())
    robot = robot_spec(config.robot)
    paths = _held_out(checkpoint) if test_data is None else find_episodes(test_data)
    logger.info("evaluating %s on %d episodes", checkpoint, len(paths))
    num_workers = choose_workers(config.data, config.training.device)
    cameras = [camera.name for camera in config.cameras]
    episodes = load_episodes(
        paths,
        robot=robot,
        cameras=cameras,
        control_hz=config.data.control_hz,
        instruction=config.data.instruction,
        cache_bytes=config.data.cache_gb * 1e9 if num_workers == 0 else 0,
    )
    source = choose_action_source(episodes, config.data.action_source)
    config = fill_in(config, sizes=image_sizes(episodes, cameras), action_source=source)
    dataset = EpisodeDataset(
        episodes,
        horizon=config.action_horizon,
        action_source=source,
        image_size=camera_sizes(config),
        history=config.history,
    )
    backend, model = restore_backend(checkpoint, config=config)
    half = autocast_type(config.training.mixed_precision)
    if half is not None:
        keep_as_computed(model, half, trained=True)
    return evaluate(
        backend,
        model.to(device),
        evaluation_batches(dataset, backend.processor, config=config, num_workers=num_workers),
        shape=(config.action_horizon, robot.size),
        device=device,
        autocast=lambda: autocast(config.training, device),
        world=World(),
    )


def report(result: Evaluation, robot: RobotSpec) -> str:
    """The table that the command prints, errors in rad and in degrees."""
    width = max(map(len, robot.joint_names))
    lines = [
        f"{result.n_steps} steps, loss {result.loss:.4g}",
        f"mean absolute error {_angle(result.action_l1_rad)}, "
        f"at the start of episodes {_angle(result.start_l1_rad)}, of holding still {_angle(result.holding.mean())}",
        "",
        f"{'joint':<{width}}  error                  holding still",
    ]
    for name, error, holding in zip(robot.joint_names, result.by_joint, result.holding, strict=True):
        lines.append(f"{name:<{width}}  {_angle(error)}  {_angle(holding)}")
    lines += ["", f"{'row of the chunk':<{width}}  error"]
    lines += [f"{row:<{width}}  {_angle(error)}" for row, error in enumerate(result.by_row)]
    return "\n".join(lines)


def as_json(result: Evaluation, robot: RobotSpec, checkpoint: Path) -> str:
    """The same numbers for programs; null where there is none."""
    values: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "n_steps": result.n_steps,
        "eval/loss": result.loss,
        "eval/action_l1_rad": result.action_l1_rad,
        "eval/action_l1_rad_start": _number(result.start_l1_rad),
        "by_joint_rad": dict(zip(robot.joint_names, map(float, result.by_joint), strict=True)),
        "by_row_rad": [_number(error) for error in result.by_row],
        "holding_rad": dict(zip(robot.joint_names, map(float, result.holding), strict=True)),
    }
    return json.dumps(values, indent=2) + "\n"


def _held_out(checkpoint: Path) -> list[Path]:
    if not (checkpoint / RECORD_NAME).is_file():
        raise DataError(f"{checkpoint} has no {RECORD_NAME}, which says what was held out; name some with --test-data")
    root, split = read_split(checkpoint)
    paths = [root / name for name in split.val]
    if not paths:
        raise DataError(f"no episodes were held out when {checkpoint} was trained; name some with --test-data")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}, held out when {checkpoint} was trained, is gone; name other episodes with --test-data"
        )
    return paths


def _angle(value: float) -> str:
    return f"{value:.4f} rad ({np.degrees(value):5.2f} deg)"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
