from __future__ import annotations

import numpy as np
import pytest

from lift.tasks.judge import Judge, Outcome
from lift.tasks.pick_up import PICK_UP

RESTING = PICK_UP.cube.edge / 2
LIFTED = RESTING + PICK_UP.lift


def at(*heights: float, x: float = 0.24) -> np.ndarray:
    """Task states of cubes at these heights."""
    return np.array([[x, 0.0, height, 1.0, 0.0, 0.0, 0.0] for height in heights], dtype=np.float32)


def watch(heights: list[float], *, control_hz: float = 10.0, max_steps: int = 1000) -> list[Outcome]:
    """Outcomes of the periods between these heights of one cube."""
    judge = Judge(PICK_UP, num_envs=1, control_hz=control_hz, max_steps=max_steps)
    judge.begin(0, at(heights[0])[0])
    return [judge.judge(at(height)) for height in heights[1:]]


def successes(outcomes: list[Outcome]) -> list[bool]:
    return [bool(outcome.success[0]) for outcome in outcomes]


@pytest.mark.parametrize("control_hz", [5.0, 10.0, 50.0])
def test_success_is_the_cube_lifted_for_one_second(control_hz: float) -> None:
    """The period in which it is raised does not count: it may have been up at its very end only."""
    periods = round(control_hz)
    outcomes = watch([RESTING] + [LIFTED] * (periods + 1), control_hz=control_hz)
    assert successes(outcomes) == [False] * periods + [True]
    assert outcomes[-1].terminated[0]
    assert not outcomes[-1].truncated[0]
    assert not any(outcome.terminated[0] for outcome in outcomes[:-1])


def test_a_second_counts_only_without_a_break() -> None:
    up = [LIFTED] * 10
    assert not any(successes(watch([RESTING, *up, LIFTED - 0.001, *up])))
    assert successes(watch([RESTING, *up, LIFTED - 0.001, *up, LIFTED]))[-1]


def test_a_little_below_the_height_is_not_lifted() -> None:
    assert not any(successes(watch([RESTING] + [LIFTED - 1e-4] * 50)))


def test_an_episode_is_truncated_at_the_step_limit_and_not_terminated() -> None:
    outcomes = watch([RESTING] * 6, max_steps=5)
    assert [bool(o.truncated[0]) for o in outcomes] == [False] * 4 + [True]
    assert not any(o.terminated[0] or o.success[0] for o in outcomes)


def test_success_in_the_last_step_is_both() -> None:
    outcome = watch([LIFTED] * 11, max_steps=10)[-1]
    assert outcome.success[0]
    assert outcome.terminated[0]
    assert outcome.truncated[0]


@pytest.mark.parametrize(("x", "height"), [(0.45, RESTING), (0.05, RESTING), (0.24, -0.3)])
def test_a_lost_cube_ends_the_episode_without_success(x: float, height: float) -> None:
    judge = Judge(PICK_UP, num_envs=1, control_hz=10.0, max_steps=100)
    judge.begin(0, at(RESTING)[0])
    outcome = judge.judge(at(height, x=x))
    assert outcome.terminated[0]
    assert not outcome.success[0]
    assert not outcome.truncated[0]


def test_episodes_are_counted_apart() -> None:
    judge = Judge(PICK_UP, num_envs=2, control_hz=10.0, max_steps=12)
    for env in range(2):
        judge.begin(env, at(LIFTED)[0])
    for _ in range(5):
        judge.judge(at(LIFTED, LIFTED))
    judge.begin(1, at(LIFTED)[0])
    for _ in range(4):
        judge.judge(at(LIFTED, LIFTED))
    np.testing.assert_array_equal(judge.judge(at(LIFTED, LIFTED)).success, [True, False])
    np.testing.assert_array_equal(judge.steps, [10, 5])
    for _ in range(2):
        outcome = judge.judge(at(RESTING, RESTING))
    np.testing.assert_array_equal(outcome.truncated, [True, False])
    np.testing.assert_array_equal(outcome.success, [False, False])
