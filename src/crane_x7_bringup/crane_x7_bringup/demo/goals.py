"""What the full demo must reach to count as done."""

from __future__ import annotations

import math
from dataclasses import dataclass

FINE_TUNED = "fine-tuned"
BEFORE = "before fine-tuning"
ELSEWHERE = "fine-tuned, cube drawn elsewhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Success rate, in [0, 1], that an experiment must have: ``at_least`` so much, and ``below`` so much."""

    experiment: str
    at_least: float = 0.0
    below: float = math.inf

    def met(self, rate: float) -> bool:
        """Whether ``rate`` is within."""
        return self.at_least <= rate < self.below

    def __str__(self) -> str:
        return f"at least {self.at_least:.0%}" if self.at_least else f"below {self.below:.0%}"


GOALS = (
    Goal(experiment=FINE_TUNED, at_least=0.9),
    Goal(experiment=BEFORE, below=0.05),
    # A policy that only replays the average demonstration does not care where the cube is drawn.
    Goal(experiment=ELSEWHERE, below=0.1),
)
