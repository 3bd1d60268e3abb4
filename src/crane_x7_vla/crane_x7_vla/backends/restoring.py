"""A backend and its model from a directory that training or merging wrote."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from crane_x7_vla.backends import backend_class
from crane_x7_vla.backends.base import Backend
from crane_x7_vla.checkpoints.adapters import ADAPTERS, is_adapter_folder, merge_command
from crane_x7_vla.checkpoints.store import refuse_experiment
from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.config.yaml import CONFIG_NAME, load_config
from crane_x7_vla.data.statistics import FILE_NAME as STATISTICS_FILE
from crane_x7_vla.data.statistics import DatasetStatistics, load_statistics
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.robot import RobotSpec, robot_spec


def restore_backend(directory: Path, *, config: VLAConfig | None = None) -> tuple[Backend, nn.Module]:
    """The backend and the model of a merged model or of a checkpoint-N, whose adapters go on their base model.

    config: instead of the directory's config.yaml. Raises CheckpointError that names what is missing and what to type.
    """
    check_directory(directory)
    if config is None:
        config = load_config(directory / CONFIG_NAME)
    config = config.in_checkpoint(directory)
    has_adapters = (directory / ADAPTERS).is_dir()
    robot = robot_spec(config.robot)
    backend: Backend = backend_class(config.backend)(
        config,
        robot=robot,
        statistics=_statistics(directory / STATISTICS_FILE, robot),
        directory=None if has_adapters else directory,
    )
    return backend, backend.restore(directory)


def _statistics(path: Path, robot: RobotSpec) -> DatasetStatistics:
    """Raises CheckpointError naming the file where it is of another robot."""
    statistics = load_statistics(path)
    for size in (statistics.action.size, statistics.state.size):
        if size != robot.size:
            raise CheckpointError(
                f"{path} describes {size} joints, {robot.name} has {robot.size}; copy the file of this model's training"
            )
    return statistics


def check_directory(directory: Path) -> None:
    """Raise CheckpointError unless it is a merged model or a checkpoint-N, which brings its settings along."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory} does not exist; expected a merged model or a checkpoint-N directory")
    if is_adapter_folder(directory):
        raise CheckpointError(f"{directory} holds LoRA adapters alone; merge first with: {merge_command(directory)}")
    refuse_experiment(directory)
    for name in (CONFIG_NAME, STATISTICS_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory} lacks {name}; expected a merged model or a checkpoint-N directory")
