"""The joint target in force, as a trajectory controller sees it.

One piece serves the simulated controllers, the recorder (which writes the target in force at the end of a step) and the
executor (which must know what it last commanded), so that the three can never disagree.
"""

from __future__ import annotations

import numpy as np

_HISTORY_S = 5.0
# Nearer to a point than this (s) is the point itself, so that rounding of stamps never changes a target by a bit.
_SNAP_S = 1e-6


class Setpoint:
    """Piecewise-linear joint target, replaced by each new trajectory.

    Semantics of ros2_controllers' JointTrajectoryController with position interfaces and linear interpolation: a new
    trajectory starts from the target in force when it begins, passes its points, and holds the last one. What was in
    force during the last seconds stays known, so a target may be asked for a little after the fact.
    """

    def __init__(self, position: np.ndarray, stamp: float) -> None:
        """position: float [S] rad, held from ``stamp`` (s) until a trajectory comes."""
        self._times = np.array([stamp], dtype=np.float64)
        self._positions = np.asarray(position, dtype=np.float64)[None, :]

    def replace(self, start: float, times: np.ndarray, positions: np.ndarray) -> None:
        """Follow ``positions`` [P, S] rad at ``start + times`` [P] s from the target in force at ``start``.

        A first time of 0 makes the first position the target at once, as a controller does.
        Raises ValueError when times are not increasing from 0 on, or shapes differ.
        """
        times = np.asarray(times, dtype=np.float64)
        positions = np.asarray(positions, dtype=np.float64)
        if positions.ndim != 2 or positions.shape[1] != self._positions.shape[1] or times.shape != positions.shape[:1]:
            raise ValueError(f"trajectory of shape {positions.shape} at {times.shape} times, expected [P, S] and [P]")
        if times.size == 0 or times[0] < 0 or np.any(np.diff(times) <= 0):
            raise ValueError("trajectory times must be increasing, and not negative")
        begin = self.at(start)
        first = int(np.searchsorted(self._times, start - _HISTORY_S, side="right")) - 1
        kept = (self._times < start) & (np.arange(len(self._times)) >= first)
        self._times = np.concatenate([self._times[kept], [start], start + times])
        self._positions = np.concatenate([self._positions[kept], begin[None, :], positions])

    def at(self, stamp: float) -> np.ndarray:
        """float64 [S] rad, the target in force at ``stamp``; held before the first and after the last point."""
        right = int(np.searchsorted(self._times, stamp, side="right"))
        if right == 0:
            return self._positions[0].copy()
        if right == len(self._times):
            return self._positions[-1].copy()
        left_time, right_time = self._times[right - 1], self._times[right]
        if stamp - left_time < _SNAP_S:
            return self._positions[right - 1].copy()
        if right_time - stamp < _SNAP_S:
            return self._positions[right].copy()
        weight = (stamp - left_time) / (right_time - left_time)
        return (1.0 - weight) * self._positions[right - 1] + weight * self._positions[right]
