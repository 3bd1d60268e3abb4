from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from crane_x7_vla.config.base import CameraConfig
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.nodes.driving import LockstepDriver, RealtimeDriver, Worker
from crane_x7_vla.nodes.messages import AT_ONCE, joint_state_message, rgb_to_image
from crane_x7_vla.nodes.observing import ObservationBuffer
from crane_x7_vla.policies.pilot import Pilot
from crane_x7_vla.policies.policy import PolicySpec
from crane_x7_vla.protocol import JOINT_STATES
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.safety import SafetyLimits
from crane_x7_vla.types import ActionChunk, Observation

HOME = np.array(CRANE_X7.home, np.float32)
SECOND = 1_000_000_000
DT = 100_000_000


class FakePolicy:
    """Turns joint 1 by 0.01 rad a row from the commanded target; remembers what it saw."""

    def __init__(self) -> None:
        self.spec = PolicySpec(
            robot=CRANE_X7,
            cameras=(CameraConfig(name="primary"),),
            action_horizon=8,
            n_action_steps=2,
            dt=0.1,
            history=0,
            action_form="absolute",
            action_source="commanded",
            backend="fake",
        )
        self.seen: list[Observation] = []
        self.nan = False

    def infer(
        self, observations: Sequence[Observation], *, running: Sequence[Any] | None = None, rng: Any = None
    ) -> list[ActionChunk]:
        (observation,) = observations
        self.seen.append(observation)
        assert observation.commanded is not None
        rows = np.tile(observation.commanded, (8, 1))
        rows[:, 0] += 0.01 * np.arange(1, 9, dtype=np.float32)
        return [ActionChunk(actions=rows * np.float32("nan") if self.nan else rows, dt=0.1, stamp=observation.stamp)]


class InlineWorker:
    """Does each job at once, or when told to."""

    def __init__(self) -> None:
        self.delayed = False
        self.jobs: list[Callable[[], None]] = []

    @property
    def busy(self) -> bool:
        return bool(self.jobs)

    def submit(self, job: Callable[[], None]) -> None:
        if self.delayed:
            self.jobs.append(job)
        else:
            job()

    def finish(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()


class Bench:
    """A driver with its surroundings: what is seen goes in, what is commanded is kept."""

    def __init__(self) -> None:
        self.policy = FakePolicy()
        self.pilot = Pilot(self.policy, limits=SafetyLimits())
        self.buffer = ObservationBuffer(CRANE_X7, ["primary"], dt=0.1)
        self.worker = InlineWorker()
        self.sent: list[tuple[int, int, float]] = []
        self.sent_at: list[int] = []
        self.now = 0
        self.instruction = "pick up"

    def publish(self, target: np.ndarray, *, stamp: int, duration: int) -> None:
        self.sent.append((stamp, duration, round(float(target[0]), 6)))
        self.sent_at.append(self.now)

    def lockstep(self) -> LockstepDriver:
        driver = LockstepDriver(
            self.pilot,
            self.buffer,
            self.publish,
            lambda: self.instruction,
            self.worker,  # pyright: ignore[reportArgumentType]
        )
        driver.start()
        return driver

    def realtime(self) -> RealtimeDriver:
        driver = RealtimeDriver(
            self.pilot,
            self.buffer,
            self.publish,
            lambda: self.instruction,
            self.worker,  # pyright: ignore[reportArgumentType]
            command_hz=50.0,
            max_age=0.3,
        )
        driver.start()
        return driver

    def tick(self, driver: RealtimeDriver, now: int) -> None:
        self.now = now
        driver.tick(now)

    def joints(self, stamp: int, state: np.ndarray = HOME) -> int:
        return self.buffer.add(JOINT_STATES, joint_state_message(CRANE_X7, stamp, state, np.zeros(8)))

    def image(self, stamp: int) -> int:
        return self.buffer.add("primary", rgb_to_image(np.zeros((2, 2, 3), np.uint8), stamp, ""))


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- lockstep ---------------------------------------------------------------------------------------------------------


def instant(bench: Bench, driver: LockstepDriver, stamp: int) -> None:
    driver.on_message(bench.joints(stamp))
    driver.on_message(bench.image(stamp))


def test_each_complete_instant_gets_one_command_with_its_stamp(bench: Bench) -> None:
    driver = bench.lockstep()
    for k in range(5):
        driver.on_message(bench.joints(SECOND + k * DT))
        assert len(bench.sent) == k
        assert driver.pending == SECOND + k * DT
        driver.on_message(bench.image(SECOND + k * DT))
        assert driver.pending is None
    assert bench.sent == [(SECOND + k * DT, DT, round(0.01 * (k + 1), 6)) for k in range(5)]
    assert [o.stamp for o in bench.policy.seen] == [1.0, 1.2, 1.4]
    assert [round(float(o.commanded[0]), 6) for o in bench.policy.seen if o.commanded is not None] == [0.0, 0.02, 0.04]


def test_nothing_is_sent_before_start_and_the_waiting_instant_is_answered_at_start(bench: Bench) -> None:
    driver = bench.lockstep()
    driver.stop()
    instant(bench, driver, SECOND)
    assert bench.sent == []
    assert driver.pending is None
    driver.start()
    assert [stamp for stamp, _, _ in bench.sent] == [SECOND]


def test_a_repeated_instant_gets_the_same_command_again(bench: Bench) -> None:
    driver = bench.lockstep()
    instant(bench, driver, SECOND)
    instant(bench, driver, SECOND)
    assert set(bench.sent) == {(SECOND, DT, 0.01)}
    assert len(bench.sent) > 1
    assert len(bench.policy.seen) == 1


@pytest.mark.parametrize("jump", [SECOND + DT, -3 * DT])
def test_after_a_reset_plan_and_last_command_are_dropped(bench: Bench, jump: int) -> None:
    driver = bench.lockstep()
    for k in range(4):
        instant(bench, driver, 2 * SECOND + k * DT)
    after = 2 * SECOND + 3 * DT + jump
    driver.on_message(bench.joints(after, HOME + np.float32(0.1)))
    driver.on_message(bench.image(after))
    assert bench.sent[-1] == (after, DT, pytest.approx(0.11))
    assert len(bench.policy.seen) == 3


def test_an_incomplete_instant_is_waited_for_and_told(bench: Bench) -> None:
    driver = bench.lockstep()
    assert driver.waiting_for() is None
    instant(bench, driver, SECOND)
    assert driver.waiting_for() is None
    driver.on_message(bench.joints(SECOND + DT))
    assert driver.waiting_for() == "no camera primary of 1.100 s"
    assert [stamp for stamp, _, _ in bench.sent] == [SECOND] * len(bench.sent)
    bench.worker.delayed = True
    driver.on_message(bench.image(SECOND + DT))
    assert driver.waiting_for() == "the policy's answer to 1.100 s"
    bench.worker.finish()
    assert driver.waiting_for() is None
    assert bench.sent[-1] == (SECOND + DT, DT, 0.02)
    assert bench.pilot.counts.holds == 0


class Interrupted:
    """Stands in for the policy's ``infer``: does something to the driver in the middle of a thought."""

    def __init__(self, bench: Bench, during: Callable[[], None]) -> None:
        self._infer = bench.policy.infer
        self._during = during

    def __call__(self, observations: Sequence[Observation], **others: Any) -> list[ActionChunk]:
        self._during()
        return self._infer(observations, **others)


def test_after_stop_nothing_is_sent_not_even_what_was_being_thought_of(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = bench.lockstep()
    monkeypatch.setattr(bench.policy, "infer", Interrupted(bench, driver.stop))
    instant(bench, driver, SECOND)
    assert len(bench.policy.seen) == 1
    assert bench.sent == []


def test_a_start_while_an_older_run_thinks_is_not_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = bench.lockstep()
    for k in range(2):
        instant(bench, driver, SECOND + k * DT)
    assert bench.sent[-1][2] == 0.02
    bench.worker.delayed = True
    instant(bench, driver, SECOND + 2 * DT)

    def restart() -> None:
        driver.stop()
        driver.start()

    monkeypatch.setattr(bench.policy, "infer", Interrupted(bench, restart))
    bench.worker.jobs.pop(0)()
    assert [stamp for stamp, _, _ in bench.sent].count(SECOND + 2 * DT) == 0, "the answer of the run that was stopped"
    monkeypatch.undo()
    bench.worker.finish()
    # Anew from the measured state, not from the plan of before.
    assert bench.sent[-1] == (SECOND + 2 * DT, DT, 0.01)
    assert driver.pending is None


def test_nan_holds_but_the_simulator_is_answered(bench: Bench) -> None:
    driver = bench.lockstep()
    bench.policy.nan = True
    for k in range(3):
        instant(bench, driver, SECOND + k * DT)
    assert bench.sent == [(SECOND + k * DT, DT, 0.0) for k in range(3)]
    assert "not finite" in str(bench.pilot.hold_reason)


def test_another_rate_than_the_policys_is_an_error_naming_both(bench: Bench) -> None:
    driver = bench.lockstep()
    instant(bench, driver, SECOND)
    with pytest.raises(ConfigError, match=r"come at 20 Hz, but the policy was trained at 10 Hz; .*control_hz:=10"):
        instant(bench, driver, SECOND + DT // 2)


def test_joints_that_cannot_be_read_are_told_and_not_answered(bench: Bench) -> None:
    driver = bench.lockstep()
    bad = HOME.copy()
    bad[2] = np.nan
    driver.on_message(bench.joints(SECOND, bad))
    driver.on_message(bench.image(SECOND))
    assert bench.sent == []
    assert driver.pending == SECOND
    assert "not a finite number" in str(driver.waiting_for())
    # The simulator repeats the instant, then its joints can be read.
    instant(bench, driver, SECOND)
    assert bench.sent[-1] == (SECOND, DT, 0.01)
    assert driver.waiting_for() is None


def test_an_instant_is_thought_about_and_answered_once_however_often_it_is_shown_meanwhile(bench: Bench) -> None:
    driver = bench.lockstep()
    bench.worker.delayed = True
    for _ in range(3):
        instant(bench, driver, SECOND)
    bench.worker.finish()
    assert bench.sent == [(SECOND, DT, 0.01)]


# -- real time --------------------------------------------------------------------------------------------------------


def drive(
    bench: Bench, driver: RealtimeDriver, begin: int, end: int, *, camera: bool = True, ticks: bool = True
) -> None:
    """Ticks at 50 Hz from ``begin`` to ``end`` ns, joints at 100 Hz and images at 10 Hz, 5 ms late."""
    for now in range(begin, end, DT // 20):
        if now % (DT // 10) == 0:
            bench.joints(now - DT // 20)
        if camera and now % DT == 0:
            bench.image(now - DT // 20)
        if ticks and now % (DT // 5) == 0:
            bench.tick(driver, now)


def test_targets_are_streamed_and_interpolated(bench: Bench) -> None:
    driver = bench.realtime()
    drive(bench, driver, SECOND, 2 * SECOND)
    assert bench.sent_at == list(range(SECOND, 2 * SECOND, DT // 5))
    assert {(stamp, duration) for stamp, duration, _ in bench.sent} == {(AT_ONCE, 0)}
    moves = np.diff([value for _, _, value in bench.sent])
    assert np.all(moves >= -1e-6)
    # 0.1 rad/s, less the time to the first answer.
    assert 0.06 < bench.sent[-1][2] < 0.11
    assert moves.max() < 0.005
    assert 4 <= len(bench.policy.seen) <= 6


def test_a_dead_camera_holds_the_arm_and_says_so(bench: Bench) -> None:
    driver = bench.realtime()
    drive(bench, driver, SECOND, 2 * SECOND)
    drive(bench, driver, 2 * SECOND, 3 * SECOND, camera=False)
    assert "camera primary is" in str(bench.pilot.hold_reason)
    held = [value for at, (_, _, value) in zip(bench.sent_at, bench.sent, strict=True) if at >= 2 * SECOND + 4 * DT]
    assert len(set(held)) == 1
    assert len(held) > 20
    asked = len(bench.policy.seen)
    drive(bench, driver, 3 * SECOND, 4 * SECOND)
    assert bench.pilot.hold_reason is None
    assert len(bench.policy.seen) > asked


def test_nothing_is_sent_before_everything_was_seen(bench: Bench) -> None:
    driver = bench.realtime()
    drive(bench, driver, SECOND, 2 * SECOND, camera=False)
    assert bench.sent == []
    assert "nothing from camera primary yet" in str(bench.pilot.hold_reason)


def test_a_slow_policy_never_blocks_and_its_past_rows_are_dropped(bench: Bench) -> None:
    driver = bench.realtime()
    bench.worker.delayed = True
    drive(bench, driver, SECOND, SECOND + 3 * DT)
    assert {value for _, _, value in bench.sent} == {0.0}
    bench.worker.finish()
    assert len(bench.policy.seen) == 1
    drive(bench, driver, SECOND + 3 * DT, SECOND + 4 * DT)
    # Asked at 0.995 s, so the row due at 1.395 s is the fourth; 50 Hz reaches it 5 ms later.
    assert bench.sent[-1][2] == pytest.approx(0.0405, abs=1e-4)


def test_a_policy_that_hangs_holds_the_arm_and_says_so_until_it_answers(bench: Bench) -> None:
    driver = bench.realtime()
    drive(bench, driver, SECOND, 2 * SECOND)
    bench.worker.delayed = True
    drive(bench, driver, 2 * SECOND, 3 * SECOND)
    # Eight rows of 0.1 s: until then the plan goes on, or its last row is waited at.
    assert bench.pilot.hold_reason == "the policy has not answered for 1.0 s"
    assert len(bench.worker.jobs) == 1
    held = bench.sent[-1][2]
    holds = bench.pilot.counts.holds
    drive(bench, driver, 3 * SECOND, 5 * SECOND)
    assert bench.pilot.hold_reason == "the policy has not answered for 3.0 s"
    assert bench.sent[-1][2] == held
    assert bench.pilot.counts.holds == holds
    bench.worker.finish()
    bench.worker.delayed = False
    drive(bench, driver, 5 * SECOND, 6 * SECOND)
    assert bench.pilot.hold_reason is None
    assert bench.sent[-1][2] > held + 0.05


def test_a_simulator_that_jumps_ahead_is_not_taken_for_a_policy_that_hangs(bench: Bench) -> None:
    driver = bench.realtime()
    bench.worker.delayed = True
    drive(bench, driver, SECOND, SECOND + DT)
    drive(bench, driver, 3 * SECOND, 3 * SECOND + DT)
    assert bench.pilot.hold_reason is None


def test_an_answer_from_before_a_hold_is_not_followed(bench: Bench) -> None:
    driver = bench.realtime()
    bench.worker.delayed = True
    drive(bench, driver, SECOND, SECOND + 2 * DT)
    drive(bench, driver, SECOND + 2 * DT, 2 * SECOND, camera=False)
    assert bench.pilot.hold_reason is not None
    bench.worker.finish()
    bench.tick(driver, 2 * SECOND)
    drive(bench, driver, 2 * SECOND + DT, 2 * SECOND + DT + 1)
    assert {value for _, _, value in bench.sent} == {0.0}


def test_an_arm_unheard_for_a_second_is_taken_up_where_it_is(bench: Bench) -> None:
    driver = bench.realtime()
    drive(bench, driver, SECOND, 2 * SECOND)
    bench.joints(4 * SECOND, HOME + np.float32(0.2))
    bench.image(4 * SECOND)
    bench.tick(driver, 4 * SECOND)
    assert bench.sent[-1][2] == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("seconds", [0.4, 0.6])
@pytest.mark.parametrize("heard", [True, False])
def test_after_a_stall_the_arm_goes_on_from_the_last_target_sent(bench: Bench, seconds: float, heard: bool) -> None:
    """Heard: what came during the stall is in the buffer when the node goes on, and the policy's answer is there."""
    driver = bench.realtime()
    drive(bench, driver, SECOND, 2 * SECOND)
    bench.worker.delayed = True
    drive(bench, driver, 2 * SECOND, 2 * SECOND + 2 * DT)
    assert bench.worker.busy
    last = bench.sent[-1][2]
    again = 2 * SECOND + 2 * DT + round(seconds * SECOND)
    if heard:
        drive(bench, driver, 2 * SECOND + 2 * DT, again, ticks=False)
        bench.worker.finish()
    bench.tick(driver, again)
    assert bench.sent[-1][2] == last
    assert bench.pilot.hold_reason == f"{seconds + 0.02:.2f} s passed between two commands"
    bench.worker.finish()
    bench.worker.delayed = False
    drive(bench, driver, again + DT // 5, again + SECOND)
    moves = np.diff([last, *(value for at, (_, _, value) in zip(bench.sent_at, bench.sent, strict=True) if at > again)])
    assert np.abs(moves).max() < 0.01
    assert bench.pilot.hold_reason is None


def test_a_clock_that_is_set_back_does_not_bring_back_an_earlier_target(bench: Bench) -> None:
    driver = bench.realtime()
    drive(bench, driver, SECOND, 2 * SECOND)
    last = bench.sent[-1][2]
    bench.tick(driver, 2 * SECOND - 4 * DT)
    assert bench.sent[-1][2] == last


def test_a_stop_right_after_a_stall_sends_the_last_target(bench: Bench) -> None:
    driver = bench.realtime()
    drive(bench, driver, SECOND, 2 * SECOND)
    last = bench.sent[-1][2]
    drive(bench, driver, 2 * SECOND, 2 * SECOND + 4 * DT, ticks=False)
    driver.stop()
    assert bench.sent[-1][2] == last


def test_stop_sends_the_last_target_once_more(bench: Bench) -> None:
    driver = bench.realtime()
    drive(bench, driver, SECOND, 2 * SECOND)
    count, last = len(bench.sent), bench.sent[-1][2]
    driver.stop()
    drive(bench, driver, 2 * SECOND, 3 * SECOND)
    assert len(bench.sent) == count + 1
    assert bench.sent[-1][2] == last


# -- worker -----------------------------------------------------------------------------------------------------------


def test_the_worker_keeps_order_and_hands_failures_over() -> None:
    worker = Worker("test")
    done: list[int] = []
    gate = threading.Event()

    def fail() -> None:
        gate.wait(10)
        raise ConfigError("broken")

    for number in range(3):
        worker.submit(lambda number=number: done.append(number))
    worker.submit(fail)
    assert worker.busy
    assert worker.failure is None
    gate.set()
    worker.stop(patience=10.0)
    assert done == [0, 1, 2]
    assert isinstance(worker.failure, ConfigError)


def test_an_idle_worker_is_not_busy() -> None:
    worker = Worker("test")
    worker.submit(lambda: None)
    deadline = time.monotonic() + 10
    while worker.busy:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    worker.stop(patience=5.0)
