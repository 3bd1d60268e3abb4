"""When an episode has succeeded and when it is over, decided from the task's state alone, alike in every simulator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lift.tasks.pick_up import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """success, terminated, truncated: bool [N], as in ``StepResult``."""

    success: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Judge:
    """Watches N episodes, one control period at a time.

    Success is the object lifted without a break for ``Task.hold_s``: lifted at both ends of every period of that time.
    """

    def __init__(self, task: Task, *, num_envs: int, control_hz: float, max_steps: int) -> None:
        self._task = task
        self._max_steps = max_steps
        self._hold_steps = max(1, math.ceil(task.hold_s * control_hz - 1e-6))
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._held = np.zeros(num_envs, dtype=np.int64)
        self._lifted = np.zeros(num_envs, dtype=bool)

    @property
    def steps(self) -> np.ndarray:
        """int64 [N]: periods since each episode began."""
        return self._steps.copy()

    def begin(self, env: int, task_state: np.ndarray) -> None:
        """A new episode of environment ``env``. task_state: float32 [K], at its start."""
        self._steps[env] = 0
        self._held[env] = 0
        self._lifted[env] = self._task.lifted(task_state[None])[0]

    def judge(self, task_state: np.ndarray) -> Outcome:
        """Another period is over. task_state: float32 [N, K], at its end."""
        lifted = self._task.lifted(task_state)
        self._steps += 1
        self._held = np.where(self._lifted & lifted, self._held + 1, 0)
        self._lifted = lifted
        success = self._held >= self._hold_steps
        return Outcome(
            success=success,
            terminated=success | self._task.lost(task_state),
            truncated=self._steps >= self._max_steps,
        )
