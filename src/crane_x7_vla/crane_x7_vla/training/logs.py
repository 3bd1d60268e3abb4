"""Where the metrics of a run go: metrics.jsonl and TensorBoard always, W&B if asked; and its progress on the screen."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.config.schema import settings, to_plain, value_at
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.training.events import EventFile

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"


def check_wandb(config: VLAConfig) -> None:
    """Raise ConfigError where W&B is asked for but not installed or switched off; before anything heavy starts."""
    if not config.training.use_wandb:
        return
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError("use_wandb is set, but wandb is not installed; pip install wandb, or --no-use-wandb")
    if os.environ.get("WANDB_MODE") == "disabled":
        raise ConfigError(
            "use_wandb is set, but the environment says WANDB_MODE=disabled, so that nothing would be logged; set it "
            "to online or offline, or --no-use-wandb"
        )


@functools.cache
def terminal() -> Console:
    """The one console of this process, on stderr: log lines and the progress bar must know of each other."""
    return Console(stderr=True)


def as_minutes(seconds: float) -> str:
    """Such as 1:10."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class MetricLog:
    """Writes the metrics of one run. first_step: lines of later steps, left by an interrupted run, are dropped."""

    def __init__(self, folder: Path, config: VLAConfig, *, first_step: int) -> None:
        path = folder / METRICS_NAME
        kept = [line for line in _lines(path) if line["step"] <= first_step] if first_step else []
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._board = EventFile(folder / "tensorboard", first_step=first_step)
        self._wandb: Any = _start_wandb(folder, config) if config.training.use_wandb else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics; names have their train/ or eval/ prefix."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        self._board.write(step, metrics)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def close(self) -> None:
        """Flush everything to its files."""
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class MetricWindow:
    """The metrics of the updates since the last line of the log."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._started = time.monotonic()
        self.steps = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Those of one update."""
        self.steps += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Averages over the updates."""
        return {name: total / self.steps for name, total in self._sums.items()}

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._started


class ProgressDisplay:
    """A bar with the time left on a terminal, a line of the log now and then elsewhere."""

    def __init__(self, total_steps: int, *, first_step: int, visible: bool) -> None:
        console = terminal()
        self._bar: Progress | None = None
        self._total = total_steps
        self._visible = visible
        if visible and console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                TextColumn("{task.description}"),
                console=console,
                refresh_per_second=2,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=first_step)
            self._bar.start()

    def step(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, metrics: Mapping[str, float], *, seconds_left: float) -> None:
        """Say the metrics."""
        said = "  ".join(f"{name.partition('/')[2]} {value:.4g}" for name, value in metrics.items())
        if self._bar is not None:
            self._bar.update(self._task, description=said)
        elif self._visible:
            logger.info("step %d/%d  %s  %s left", step, self._total, said, as_minutes(seconds_left))

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines only: a run that was killed may have left half a line."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            logger.warning("%s: dropped a line that was cut off", path)
    return lines


def _start_wandb(folder: Path, config: VLAConfig) -> Any:
    import wandb  # pyright: ignore[reportMissingImports] # optional, asked for by use_wandb

    return wandb.init(
        project=config.training.wandb_project,
        entity=config.training.wandb_entity,
        name=config.experiment_name,
        dir=str(folder),
        config={path: to_plain(value_at(config, path)) for path in settings(type(config))},
    )
