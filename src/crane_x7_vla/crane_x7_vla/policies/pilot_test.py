from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from crane_x7_vla.config.base import CameraConfig
from crane_x7_vla.errors import ConfigError, DataError
from crane_x7_vla.policies.pilot import Pilot
from crane_x7_vla.policies.policy import PolicySpec
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.safety import SafetyLimits
from crane_x7_vla.types import ActionChunk, Observation

HOME = np.array(CRANE_X7.home, np.float32)
DT = 0.1


class FakePolicy:
    """Answers with what ``answer`` makes of the observation."""

    def __init__(self, answer: Callable[[Observation], np.ndarray]) -> None:
        self.spec = PolicySpec(
            robot=CRANE_X7,
            cameras=(CameraConfig(name="primary"),),
            action_horizon=8,
            n_action_steps=4,
            dt=DT,
            history=0,
            action_form="absolute",
            action_source="commanded",
            backend="fake",
        )
        self.answer = answer
        self.running: Any = None

    def infer(
        self, observations: Sequence[Observation], *, running: Sequence[Any] | None = None, rng: Any = None
    ) -> list[ActionChunk]:
        assert running is not None
        self.running = running[0]
        return [ActionChunk(actions=self.answer(o), dt=DT, stamp=o.stamp) for o in observations]


def ramp(observation: Observation) -> np.ndarray:
    """Joint 1 turns by 0.01 rad a row from where it is."""
    rows = np.tile(observation.state, (8, 1))
    rows[:, 0] += 0.01 * np.arange(1, 9, dtype=np.float32)
    return rows


def pilot(answer: Callable[[Observation], np.ndarray] = ramp) -> Pilot:
    result = Pilot(FakePolicy(answer), limits=SafetyLimits())
    result.begin(HOME, 1.0)
    return result


def observe(stamp: float, state: np.ndarray = HOME) -> Observation:
    return Observation(images={}, state=state, instruction="", stamp=stamp, commanded=state)


def test_lockstep_follows_n_rows_and_asks_again() -> None:
    flown = pilot()
    asked = []
    targets = []
    for k in range(8):
        now = 1.0 + k * DT
        if flown.needs_chunk(now):
            asked.append(k)
            state = HOME if not targets else targets[-1]
            assert flown.take(flown.think(observe(now, state), flown.running(now)), now)
        targets.append(flown.target(now + DT))
    assert asked == [0, 4]
    np.testing.assert_allclose([t[0] for t in targets], 0.01 * np.arange(1, 9), atol=1e-6)
    assert flown.counts.inferences == 2
    assert flown.counts.holds == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            FloatingPointError("the policy predicted NaN"),
            "the policy failed: FloatingPointError: the policy predicted NaN",
        ),
        (DataError("no image of\ncamera wrist"), "the policy failed: DataError: no image of camera wrist"),
        (KeyError("bug"), "the policy failed: KeyError: 'bug'"),
    ],
)
def test_an_exception_of_the_policy_holds_the_target_in_force(error: Exception, reason: str) -> None:
    def fails(_: Observation) -> np.ndarray:
        raise error

    flown = pilot()
    assert flown.take(flown.think(observe(1.0), None), 1.0)
    before = flown.target(1.25)
    flown.policy.answer = fails  # pyright: ignore[reportAttributeAccessIssue]
    assert not flown.take(flown.think(observe(1.2), None), 1.25)
    assert flown.hold_reason == reason
    np.testing.assert_array_equal(flown.target(5.0), before)
    assert flown.needs_chunk(1.25)
    assert flown.counts.holds == 1


def test_a_failures_traceback_is_logged_once_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    def fails(_: Observation) -> np.ndarray:
        raise RuntimeError("out of ideas")

    flown = pilot()
    logged = []
    for answer in (fails, fails, ramp, fails, fails):
        flown.policy.answer = answer  # pyright: ignore[reportAttributeAccessIssue]
        flown.think(observe(1.0), None)
        logged.append(len(caplog.records))
    assert logged == [1, 1, 1, 2, 2]


def test_nan_holds_and_a_good_answer_moves_again() -> None:
    flown = pilot(lambda o: np.full((8, 8), np.nan, np.float32))
    for _ in range(2):
        assert not flown.take(flown.think(observe(1.0), None), 1.0)
    assert "not finite" in str(flown.hold_reason)
    np.testing.assert_array_equal(flown.target(2.0), HOME)
    assert flown.counts.holds == 2
    flown.policy.answer = ramp  # pyright: ignore[reportAttributeAccessIssue]
    assert flown.take(flown.think(observe(1.0), None), 1.0)
    assert flown.hold_reason is None


def test_clamping_is_counted_and_told() -> None:
    def fast(observation: Observation) -> np.ndarray:
        rows = np.tile(observation.state, (8, 1))
        rows[:, 0] += 0.55
        return rows

    flown = pilot(fast)
    assert flown.take(flown.think(observe(1.0), None), 1.0)
    assert flown.counts.clamped == 1
    assert "slowed down" in flown.clamp_reasons[0]


def test_a_late_answer_drops_its_past_rows_and_one_too_late_holds() -> None:
    flown = pilot()
    answer = flown.think(observe(1.0), None)
    assert flown.take(answer, 1.25)
    assert flown.target(1.3)[0] == pytest.approx(0.03, abs=1e-5)
    flown.begin(HOME, 2.0)
    assert not flown.take(answer, 2.0)
    assert "longer than the 0.80 s it plans ahead" in str(flown.hold_reason)


def test_going_stale_is_counted_once() -> None:
    flown = pilot()
    for k in range(5):
        flown.hold(1.0 + 0.02 * k, f"camera primary is {0.5 + 0.02 * k:.2f} s old")
    assert flown.counts.holds == 1
    assert flown.hold_reason == "camera primary is 0.58 s old"


def test_after_forget_it_must_begin_again() -> None:
    flown = pilot()
    flown.forget()
    assert not flown.begun
    with pytest.raises(RuntimeError, match="begin"):
        flown.target(1.0)


def test_the_policy_is_told_what_is_running() -> None:
    flown = pilot()
    flown.take(flown.think(observe(1.0), flown.running(1.0)), 1.0)
    policy = flown.policy
    assert isinstance(policy, FakePolicy)
    assert policy.running is None
    flown.think(observe(1.4), flown.running(1.4))
    assert len(flown.policy.running.actions) == 4  # pyright: ignore[reportAttributeAccessIssue]


def test_starting_from_noise_beyond_a_limit_commands_the_limit() -> None:
    flown = pilot()
    state = HOME.copy()
    state[3] = 1e-5
    flown.begin(state, 1.0)
    assert flown.target(1.0)[3] == 0.0


@pytest.mark.parametrize("steps", [0, 9])
def test_n_action_steps_must_fit_the_horizon(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"n_action_steps is {steps}, but the policy predicts 8"):
        Pilot(FakePolicy(ramp), limits=SafetyLimits(), n_action_steps=steps)
