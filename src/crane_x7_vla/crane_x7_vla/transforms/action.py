"""Between radians and the units a model is trained on: relative or absolute joints, scaled to about [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from crane_x7_vla.data.statistics import NormStats

Normalization = Literal["bounds_q99", "bounds", "zscore"]


@dataclass(frozen=True, slots=True)
class ValueRange:
    """low, high: float32 [D], what -1 and 1 stand for."""

    low: np.ndarray
    high: np.ndarray

    @property
    def half_span(self) -> np.ndarray:
        """float32 [D]: the size of one model unit, in the data's units."""
        return (self.high - self.low) / np.float32(2)


def value_range(
    stats: NormStats, normalization: Normalization, *, span_floor: float, deviations: float = 1.0
) -> ValueRange:
    """What -1 and 1 stand for: q01 and q99 (OpenVLA's BOUNDS_Q99), min and max, or the mean and ``deviations`` standard
    deviations to either side.

    A span below ``span_floor`` (data's units) is widened about its middle, lest a joint that hardly moves turn sensor
    noise into the largest part of the loss. Entries whose mask is False stay as they are.
    """
    reach = np.float32(deviations) * stats.std
    low, high = {
        "bounds_q99": (stats.q01, stats.q99),
        "bounds": (stats.min, stats.max),
        "zscore": (stats.mean - reach, stats.mean + reach),
    }[normalization]
    middle, half = (low + high) / 2, np.maximum(high - low, np.float32(span_floor)) / 2
    one = np.float32(1)
    return ValueRange(np.where(stats.mask, middle - half, -one), np.where(stats.mask, middle + half, one))


def normalize(values: np.ndarray, scale: ValueRange) -> np.ndarray:
    """Data's units to model units, float32 [..., D]. Raises ValueError where D differs."""
    _check(values, scale)
    return (2 * (values - scale.low) / (scale.high - scale.low) - 1).astype(np.float32)


def unnormalize(values: np.ndarray, scale: ValueRange) -> np.ndarray:
    """Inverse of ``normalize``."""
    _check(values, scale)
    return ((values + 1) / 2 * (scale.high - scale.low) + scale.low).astype(np.float32)


def relative_to(actions: np.ndarray, anchor: np.ndarray, gripper_index: int) -> np.ndarray:
    """Absolute targets [..., T, A] rad to offsets from ``anchor`` [..., A]; the gripper stays absolute."""
    return actions - _offset(anchor, gripper_index)


def absolute_from(offsets: np.ndarray, anchor: np.ndarray, gripper_index: int) -> np.ndarray:
    """Inverse of ``relative_to``."""
    return offsets + _offset(anchor, gripper_index)


def action_rows(
    state: np.ndarray, action: np.ndarray, *, gripper_index: int, horizon: int, action_form: str
) -> np.ndarray:
    """Every row of every chunk of one episode in the form that a model is trained on, for the statistics of actions.

    state: [N, S] rad. action: [N, A] rad, absolute. action_form: absolute, or relative to the state of the chunk's
    observation. Rows past the episode's end are left out. Returns float32 [M, A].
    """
    if action_form not in ("relative", "absolute"):
        raise ValueError(f"action_form is {action_form!r}; expected relative or absolute")
    rows: list[np.ndarray] = []
    for k in range(min(horizon, len(action))):
        targets = action[k:]
        if action_form == "relative":
            targets = relative_to(targets[:, None], state[: len(targets)], gripper_index)[:, 0]
        rows.append(targets)
    return np.concatenate(rows).astype(np.float32)


def _offset(anchor: np.ndarray, gripper_index: int) -> np.ndarray:
    offset = anchor.copy()
    offset[..., gripper_index] = 0
    return offset[..., None, :]


def _check(values: np.ndarray, scale: ValueRange) -> None:
    if values.shape[-1] != scale.low.size:
        raise ValueError(f"values have {values.shape[-1]} entries, the statistics {scale.low.size}")
