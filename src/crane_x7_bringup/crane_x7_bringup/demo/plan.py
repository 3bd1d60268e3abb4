"""How large a demo run is, and where everything it makes lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crane_x7_bringup.base.shape import BASE_DIRECTORY
from crane_x7_bringup.demo.goals import GOALS, Goal
from crane_x7_vla.errors import ConfigError

# Scenes of demonstrations and of trials come from ranges that never meet, also between demo seeds.
SEEDS_PER_RUN = 10_000
_TRIALS_FROM = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """episodes: demonstrations. train_steps: updates. trials: starts for the fine-tuned policy. control_trials: starts
    for each of the two it is compared with. workers: stacks of nodes that run side by side. goals: what it must reach;
    a few trials of a model that has hardly been trained mean nothing."""

    name: str
    episodes: int
    train_steps: int
    trials: int
    control_trials: int
    workers: int = 2
    goals: tuple[Goal, ...] = ()


FULL = Size(name="demo", episodes=100, train_steps=800, trials=100, control_trials=60, goals=GOALS)
SMOKE = Size(name="demo_smoke", episodes=4, train_steps=12, trials=2, control_trials=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """size: how much of everything. data_root: recordings. output: all else. seed: 0 for the documented run."""

    size: Size
    seed: int
    data_root: Path
    output_dir: Path
    name: str
    base: Path = BASE_DIRECTORY

    @classmethod
    def make(cls, size: Size, *, seed: int, data_root: Path | None, output_dir: Path | None) -> Plan:
        """A plan with the usual folders; a seed or size of its own gets folders of its own.

        Raises ConfigError for a negative seed.
        """
        if seed < 0:
            raise ConfigError(f"--seed is {seed}; expected 0 or more")
        name = size.name if seed == 0 else f"{size.name}_seed{seed}"
        usual = "tfrecord_logs" if name == FULL.name else f"tfrecord_logs_{name}"
        return cls(
            size=size,
            seed=seed,
            data_root=data_root or Path("data") / usual,
            output_dir=output_dir or Path("outputs"),
            name=name,
        )

    @property
    def work(self) -> Path:
        """Journals, logs, pictures and the report."""
        return self.output_dir / f"{self.name}_report"

    @property
    def experiment(self) -> Path:
        """The training run."""
        return self.output_dir / self.name

    @property
    def before(self) -> Path:
        """The model as it is before fine-tuning."""
        return self.output_dir / f"{self.name}_before" / "checkpoint-0"

    @property
    def merged(self) -> Path:
        """The merged model."""
        return self.output_dir / f"{self.name}_merged"

    @property
    def first_recording_seed(self) -> int:
        return self.seed * SEEDS_PER_RUN

    @property
    def first_trial_seed(self) -> int:
        return _TRIALS_FROM + self.seed * SEEDS_PER_RUN
