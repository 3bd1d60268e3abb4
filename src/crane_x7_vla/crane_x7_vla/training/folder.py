"""The folder of a run: its checkpoints and the links to them, its metrics, and the record of how they came about."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from crane_x7_vla.checkpoints.store import BEST, FINAL, CheckpointStore
from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.config.yaml import CONFIG_NAME, dump_config
from crane_x7_vla.data import statistics as dataset_statistics
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.training.loading import TrainingData
from crane_x7_vla.training.logs import MetricLog
from crane_x7_vla.training.record import describe_run, write_run
from crane_x7_vla.training.state import TrainerState, save_state

logger = logging.getLogger(__name__)


def folder_of(config: VLAConfig) -> Path:
    """OUTPUT_DIR/EXPERIMENT_NAME."""
    return Path(config.output_dir) / config.experiment_name


def checkpoint_to_resume(config: VLAConfig) -> Path | None:
    """The checkpoint that the run goes on from, None for a new one.

    Raises ConfigError or CheckpointError where the folder holds checkpoints that do not come before this run.
    """
    store = CheckpointStore(folder_of(config))
    asked = config.training.resume_from_checkpoint
    if asked is not None:
        checkpoint = store.resolve(asked)
        store.check_newest(checkpoint)
        return checkpoint
    if store.steps():
        raise ConfigError(
            f"{store.root} already holds checkpoint-{store.steps()[-1]}; go on with "
            "--resume-from-checkpoint latest, choose another --experiment-name, or remove the folder"
        )
    return None


class RunFolder:
    """The folder of a run that begins, or goes on, at ``first_step``; only the main process writes into it.

    base: see ``Backend``. metrics: the last ones written, under their train/ and eval/ names.
    """

    def __init__(self, data: TrainingData, *, base: Path | None, first_step: int, is_main: bool) -> None:
        self.path = folder_of(data.config)
        self.metrics: dict[str, float] = {}
        self._store = CheckpointStore(self.path)
        self._config = replace(data.config, training=replace(data.config.training, resume_from_checkpoint=None))
        self._statistics = data.statistics
        self._log: MetricLog | None = None
        if is_main:
            self._record = describe_run(data.split, data_root=Path(data.config.data.data_root), base=base)
            self.path.mkdir(parents=True, exist_ok=True)
            self._describe(self.path, first_step)
            self._log = MetricLog(self.path, data.config, first_step=first_step)

    def close(self) -> None:
        """Flush the metrics."""
        if self._log is not None:
            self._log.close()

    def checkpoint(self, step: int) -> Path | None:
        """The checkpoint of ``step``, None where there is none."""
        path = self._store.path(step)
        return path if path.is_dir() else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics; those that are not finite are left out."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.metrics |= finite
        if self._log is not None:
            self._log.write(step, finite)

    def save(self, state: TrainerState, write_model: Callable[[Path], None]) -> None:
        """Save the checkpoint of ``state.step``, link the best one and remove those that are too many."""

        def fill(directory: Path) -> None:
            write_model(directory)
            self._describe(directory, state.step)
            save_state(state, directory)

        if self._log is None:
            return
        saved = self._store.save(state.step, fill)
        if state.best is not None:
            self._store.link(BEST, state.best.step)
        self._store.prune(self._config.training.keep_last)
        logger.info("saved %s", saved)

    def finish(self, step: int) -> None:
        """Link the checkpoint of ``step``, if there is one, as the last of a finished run."""
        if self._log is not None and self.checkpoint(step) is not None:
            self._store.link(FINAL, step)

    def _describe(self, directory: Path, step: int) -> None:
        """Write config.yaml, dataset_statistics.json and run.json."""
        (directory / CONFIG_NAME).write_text(dump_config(self._config), encoding="utf-8")
        statistics = dataset_statistics.to_json(self._statistics)
        (directory / dataset_statistics.FILE_NAME).write_text(statistics, encoding="utf-8")
        write_run(directory, self._record | {"step": step, "metrics": self.metrics})
