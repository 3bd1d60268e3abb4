"""Shapes are checked where values are made, so a wrong one is named at its source."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_vla.types import ActionChunk, Observation

STATE = np.zeros(8, dtype=np.float32)
IMAGE = np.zeros((4, 6, 3), dtype=np.uint8)


def test_observation_keeps_what_it_is_given() -> None:
    observation = Observation(images={"primary": IMAGE}, state=STATE, instruction="pick", stamp=1.5)
    assert observation.commanded is None
    assert observation.past == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {"wrist": IMAGE.astype(np.float32)}}, r"camera 'wrist'.*uint8 \[H, W, 3\] RGB.*float32"),
        ({"images": {"wrist": IMAGE[..., :2]}}, r"camera 'wrist' must have 3 channels"),
        ({"images": {"wrist": [[0]]}}, r"camera 'wrist'.*got list"),
        ({"state": STATE.astype(np.float64)}, r"state must be float32 \[S\].*float64"),
        ({"state": STATE[None]}, r"state must be float32 \[S\].*\[1, 8\]"),
        ({"commanded": STATE[:7]}, "commanded has 7 joints, state has 8"),
    ],
)
def test_observation_names_what_is_wrong(change: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"images": {"primary": IMAGE}, "state": STATE, "instruction": "pick", "stamp": 0.0}
    with pytest.raises(ValueError, match=message):
        Observation(**(values | change))  # pyright: ignore[reportArgumentType]


def test_rows_of_a_chunk_are_due_one_period_after_the_other() -> None:
    chunk = ActionChunk(actions=np.zeros((3, 8), dtype=np.float32), dt=0.1, stamp=2.0)
    assert chunk.due(0) == pytest.approx(2.1)
    assert chunk.due(2) == pytest.approx(2.3)


@pytest.mark.parametrize(
    ("actions", "dt", "message"),
    [
        (np.zeros((0, 8), dtype=np.float32), 0.1, "at least one row"),
        (np.zeros(8, dtype=np.float32), 0.1, r"float32 \[T, A\]"),
        (np.zeros((1, 8), dtype=np.float32), 0.0, "dt must be positive"),
    ],
)
def test_a_chunk_without_rows_or_duration_is_refused(actions: np.ndarray, dt: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionChunk(actions=actions, dt=dt, stamp=0.0)
