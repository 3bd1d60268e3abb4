"""Turns chunks into the joint target of every instant, in whatever rate the arm wants it.

Synchronous execution: a chunk is followed until a new one is taken over; a new one is asked for after
``n_action_steps`` rows. While the answer is on its way the rows beyond go on, and after the last one the arm waits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crane_x7_vla.errors import ConfigError
from crane_x7_vla.trajectory import Setpoint
from crane_x7_vla.types import ActionChunk

# Stamps nearer than this (s) are the same instant.
_SAME_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningChunk:
    """What is still being executed while a policy thinks, for policies that continue it (real-time chunking).

    actions: float32 [R, A] rad, the rows due after the observation the policy is asked about.
    n_executed: how many of them will have been executed when the answer arrives.
    """

    actions: np.ndarray
    n_executed: int


def upcoming(chunk: ActionChunk, now: float) -> ActionChunk | None:
    """``chunk`` without the rows that were due at ``now`` (s) or before; None when all were."""
    past = sum(chunk.due(row) <= now + _SAME_S for row in range(len(chunk.actions)))
    if past == len(chunk.actions):
        return None
    return ActionChunk(actions=chunk.actions[past:], dt=chunk.dt, stamp=chunk.stamp + past * chunk.dt)


class Executor:
    """The plan in force and when the next one is needed. Times are seconds of the observations' clock."""

    def __init__(self, position: np.ndarray, stamp: float, *, n_action_steps: int) -> None:
        """position: float [S] rad, held from ``stamp`` on. n_action_steps: rows executed of each chunk."""
        if n_action_steps < 1:
            raise ConfigError(f"n_action_steps must be at least 1, got {n_action_steps}")
        self._n_action_steps = n_action_steps
        self._setpoint = Setpoint(position, stamp)
        self._plan: ActionChunk | None = None
        self._next_due = stamp

    def target(self, stamp: float) -> np.ndarray:
        """float32 [S] rad, the target at ``stamp``: interpolated between rows, held after the last one."""
        return self._setpoint.at(stamp).astype(np.float32)

    def needs_chunk(self, stamp: float) -> bool:
        """Whether the policy should be asked about an observation made at ``stamp``."""
        return self._plan is None or stamp >= self._next_due - _SAME_S

    def follow(self, chunk: ActionChunk, *, now: float, observed: float) -> None:
        """Follow ``chunk`` from the target in force at ``now``.

        chunk: rows to come, see ``upcoming``. observed: stamp of the observation the policy was asked about; the next
        chunk is due ``n_action_steps`` rows after it.
        Raises ValueError when a row is due before ``now``.
        """
        times = np.array([chunk.due(row) for row in range(len(chunk.actions))]) - now
        self._setpoint.replace(now, times, chunk.actions)
        self._plan = chunk
        self._next_due = observed + self._n_action_steps * chunk.dt

    def hold(self, stamp: float) -> None:
        """Drop the plan and stay at the target in force at ``stamp``; a chunk is needed again."""
        self._setpoint.replace(stamp, np.array([_SAME_S]), self._setpoint.at(stamp)[None])
        self._plan = None

    def running(self, stamp: float, *, latency: float) -> RunningChunk | None:
        """What is being executed after ``stamp`` while an answer takes ``latency`` s; None when nothing is."""
        if self._plan is None:
            return None
        rest = upcoming(self._plan, stamp)
        if rest is None:
            return None
        after = upcoming(rest, stamp + latency)
        return RunningChunk(
            actions=rest.actions, n_executed=len(rest.actions) - (0 if after is None else len(after.actions))
        )
