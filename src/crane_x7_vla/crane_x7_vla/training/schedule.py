# pyright: strict, reportMissingTypeStubs=false
"""The learning rate over a run: one factor of the peak rate for each update."""

from __future__ import annotations

import math
from dataclasses import dataclass

from crane_x7_vla.config.base import DEFAULT_WARMUP_STEPS, TrainingConfig


def warmup_steps(training: TrainingConfig, total_steps: int) -> tuple[int, str]:
    """(steps of warm-up, how that came about). As steps they are limited to a tenth of the run; a ratio is obeyed."""
    if training.warmup_ratio is not None:
        steps = round(training.warmup_ratio * total_steps)
        return steps, f"{training.warmup_ratio:g} of {total_steps} steps"
    asked = DEFAULT_WARMUP_STEPS if training.warmup_steps is None else training.warmup_steps
    steps = min(asked, total_steps // 10)
    return steps, f"limited to a tenth of {total_steps} steps, from {asked}" if steps < asked else "as configured"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up, then constant or a cosine down to ``final_ratio`` at ``total_steps``."""

    kind: str
    warmup: int
    total_steps: int
    final_ratio: float

    def factor(self, step: int, time_share: float = 0.0) -> float:
        """Share of the peak rate for update ``step``, counted from 0.

        time_share: how much of the time budget is spent, in [0, 1]; the cosine ends with whichever ends first.
        """
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.kind == "constant":
            return 1.0
        share = (step - self.warmup) / max(1, self.total_steps - self.warmup)
        share = min(1.0, max(share, time_share))
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * share))
