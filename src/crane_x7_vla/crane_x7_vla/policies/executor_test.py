from __future__ import annotations

import numpy as np
import pytest

from crane_x7_vla.errors import ConfigError
from crane_x7_vla.policies.executor import Executor, upcoming
from crane_x7_vla.types import ActionChunk

DT = 0.1


def chunk(rows: int, *, stamp: float = 0.0, first: float = 1.0) -> ActionChunk:
    """Rows first, first + 1, … for two joints."""
    values = np.arange(first, first + rows, dtype=np.float32)
    return ActionChunk(actions=np.stack([values, -values], axis=1), dt=DT, stamp=stamp)


def executor(n_action_steps: int = 4) -> Executor:
    return Executor(np.zeros(2), 0.0, n_action_steps=n_action_steps)


def test_rows_already_past_are_dropped() -> None:
    rest = upcoming(chunk(4, stamp=1.0), 1.25)
    assert rest is not None
    assert rest.actions[:, 0].tolist() == [3.0, 4.0]
    assert rest.due(0) == pytest.approx(1.3)
    assert upcoming(chunk(4, stamp=1.0), 1.4) is None
    assert upcoming(chunk(4, stamp=1.0), 99.0) is None


def test_nothing_is_dropped_at_the_observation_itself_or_before() -> None:
    for now in (0.5, 1.0, 1.0 + 1e-9):
        rest = upcoming(chunk(2, stamp=1.0), now)
        assert rest is not None
        assert len(rest.actions) == 2


def test_a_row_due_now_is_past_whatever_the_rounding() -> None:
    for k in range(1, 2000):
        stamp = 1.0 + k * DT
        rest = upcoming(chunk(3, stamp=stamp), (round(1e9) + (k + 1) * 100_000_000) * 1e-9)
        assert rest is not None
        assert len(rest.actions) == 2


def test_lockstep_executes_n_rows_of_each_chunk_exactly() -> None:
    plan = executor(n_action_steps=3)
    executed, asked = [], []
    for k in range(9):
        now, end = (round(i * 1e8) * 1e-9 for i in (k, k + 1))
        if plan.needs_chunk(now):
            asked.append(k)
            plan.follow(chunk(8, stamp=now, first=10.0 * k + 1), now=now, observed=now)
        executed.append(float(plan.target(end)[0]))
    assert asked == [0, 3, 6]
    assert executed == [1.0, 2.0, 3.0, 31.0, 32.0, 33.0, 61.0, 62.0, 63.0]


def test_targets_are_interpolated_to_any_rate_from_the_target_in_force() -> None:
    plan = executor()
    plan.follow(chunk(2), now=0.0, observed=0.0)
    got = [float(plan.target(t)[0]) for t in (0.0, 0.02, 0.05, 0.1, 0.12, 0.2, 5.0)]
    assert got == pytest.approx([0.0, 0.2, 0.5, 1.0, 1.2, 2.0, 2.0])


def test_a_late_answer_is_joined_without_a_jump() -> None:
    plan = executor()
    plan.follow(chunk(8), now=0.0, observed=0.0)
    late = upcoming(chunk(8, stamp=0.4, first=50.0), 0.55)
    assert late is not None
    before = plan.target(0.55)
    plan.follow(late, now=0.55, observed=0.4)
    np.testing.assert_array_equal(plan.target(0.55), before)
    assert plan.target(0.6)[0] == pytest.approx(51.0)
    assert not plan.needs_chunk(0.75)
    assert plan.needs_chunk(0.8)


def test_rows_beyond_go_on_while_the_policy_thinks_and_the_last_is_held() -> None:
    plan = executor(n_action_steps=2)
    plan.follow(chunk(4), now=0.0, observed=0.0)
    assert plan.needs_chunk(0.2)
    assert plan.target(0.3)[0] == pytest.approx(3.0)
    assert plan.target(9.0)[0] == pytest.approx(4.0)


def test_hold_stays_where_the_target_is_and_asks_anew() -> None:
    plan = executor()
    plan.follow(chunk(8), now=0.0, observed=0.0)
    plan.hold(0.25)
    assert plan.needs_chunk(0.25)
    for stamp in (0.25, 0.3, 2.0):
        assert plan.target(stamp)[0] == pytest.approx(2.5)


def test_before_the_first_chunk_the_start_is_held() -> None:
    plan = Executor(np.array([0.5, 1.0]), 3.0, n_action_steps=1)
    assert plan.needs_chunk(3.0)
    assert plan.target(4.0).tolist() == [0.5, 1.0]
    assert plan.target(4.0).dtype == np.float32
    assert plan.running(4.0, latency=0.1) is None


def test_running_says_which_rows_the_answer_will_find_executed() -> None:
    plan = executor()
    plan.follow(chunk(6), now=0.0, observed=0.0)
    running = plan.running(0.2, latency=0.25)
    assert running is not None
    assert running.actions[:, 0].tolist() == [3.0, 4.0, 5.0, 6.0]
    assert running.n_executed == 2
    everything = plan.running(0.2, latency=5.0)
    assert everything is not None
    assert everything.n_executed == 4
    assert plan.running(0.6, latency=0.1) is None


def test_past_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        executor().follow(chunk(2), now=0.11, observed=0.0)


def test_n_action_steps_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="n_action_steps"):
        executor(0)
