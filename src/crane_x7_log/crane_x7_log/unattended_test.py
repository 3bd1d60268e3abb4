"""Recording with nobody at the keyboard, without ROS."""

from __future__ import annotations

import dataclasses
import re

import pytest

from crane_x7_log.recorder import DISCARDED, STOPPED
from crane_x7_log.status import Finished, State, Status
from crane_x7_log.unattended import Unattended, UnattendedConfig, Wish
from crane_x7_vla.errors import ConfigError, DataError

CONFIG = UnattendedConfig(episodes=2, episode_s=10.0, pause_s=5.0)
SAVED = Finished(outcome="saved", path="episode_0", steps=9, success=None, reason=STOPPED)
STALE = Finished(outcome="saved", path="episode_0", steps=9, success=None, reason="camera primary is stale")
LOCKSTEP = dataclasses.replace(CONFIG, lockstep=True)


def status(state: State = State.IDLE, *, waiting_for: tuple[str, ...] = (), last: Finished | None = None) -> Status:
    return Status(
        state=state.value,
        steps=0,
        episode="",
        instruction="",
        missed={},
        dropped={},
        waiting_for=waiting_for,
        saved=0,
        last=last,
    )


def on_a_table() -> Unattended:
    """One that has looked for a service that resets the scene, until 0 s."""
    unattended = Unattended(CONFIG)
    assert unattended.next(status(), -2.0, resettable=False) is None
    return unattended


def record_one(unattended: Unattended, now: float, last: Finished = SAVED) -> float:
    """From start to what became of it; returns the time."""
    assert unattended.next(status(), now, resettable=False) is Wish.START
    assert unattended.next(status(State.RECORDING), now + 1, resettable=False) is None
    if last is SAVED:
        assert unattended.next(status(State.RECORDING), now + 11, resettable=False) is Wish.STOP
    assert unattended.next(status(State.SAVING), now + 11, resettable=False) is None
    assert unattended.next(status(last=last), now + 12, resettable=False) is None
    return now + 12


def test_nothing_begins_before_every_source_is_there() -> None:
    unattended = Unattended(CONFIG)
    assert unattended.next(status(waiting_for=("primary",)), 0.0, resettable=False) is None
    assert unattended.next(status(waiting_for=("primary",)), 9.0, resettable=False) is None
    assert unattended.next(status(), 10.0, resettable=False) is None
    assert unattended.next(status(), 12.0, resettable=False) is Wish.START


def test_a_service_that_is_found_a_moment_after_the_sources_is_used() -> None:
    unattended = Unattended(CONFIG)
    assert unattended.next(status(), 0.0, resettable=False) is None
    assert unattended.next(status(), 0.5, resettable=True) is Wish.RESET


def test_so_many_episodes_with_a_pause_between_them_and_then_the_end() -> None:
    unattended = on_a_table()
    now = record_one(unattended, 0.0)
    assert unattended.seconds_to_start(now) == 5.0
    assert unattended.next(status(last=SAVED), now + 4.9, resettable=False) is None
    now = record_one(unattended, now + 5.0)
    assert unattended.saved == 2
    assert unattended.next(status(last=SAVED), now, resettable=False) is Wish.END


def test_the_seconds_of_an_episode_count_from_its_first_step() -> None:
    unattended = on_a_table()
    unattended.next(status(), 0.0, resettable=False)
    assert unattended.next(status(State.WAITING), 60.0, resettable=False) is None
    assert unattended.next(status(State.RECORDING), 61.0, resettable=False) is None
    assert unattended.next(status(State.RECORDING), 70.9, resettable=False) is None
    assert unattended.next(status(State.RECORDING), 71.0, resettable=False) is Wish.STOP


def test_a_scene_that_a_service_resets_needs_no_pause_and_ends_with_its_task() -> None:
    unattended = on_a_table()
    now = record_one(unattended, 0.0)
    assert unattended.next(status(last=SAVED), now, resettable=True) is Wish.RESET
    assert unattended.next(status(last=SAVED), now, resettable=True) is None  # the answer is not there yet
    assert unattended.on_reset(status()) is Wish.START
    assert unattended.next(status(State.RECORDING), now + 1, resettable=True) is None
    unattended.on_task_end()
    assert unattended.next(status(State.RECORDING), now + 2, resettable=True) is Wish.STOP


def test_the_end_of_a_task_outside_of_an_episode_means_nothing() -> None:
    unattended = on_a_table()
    unattended.on_task_end()
    unattended.next(status(), 0.0, resettable=False)
    assert unattended.next(status(State.RECORDING), 1.0, resettable=False) is None


def test_in_lockstep_the_recorder_is_started_when_a_scene_is_over_and_before_the_next_begins() -> None:
    unattended = Unattended(LOCKSTEP)
    assert unattended.next(status(), 0.0, resettable=True) is None  # a scene is going on
    assert not unattended.on_task_end()
    assert unattended.next(status(), 1.0, resettable=True) is Wish.START
    assert unattended.next(status(State.WAITING), 1.1, resettable=True) is Wish.RESET
    assert unattended.on_reset(status()) is None
    assert unattended.next(status(State.RECORDING), 1.2, resettable=True) is None
    assert unattended.on_task_end()
    assert unattended.next(status(State.RECORDING), 1.3, resettable=True) is Wish.STOP
    assert unattended.next(status(last=SAVED), 1.4, resettable=True) is None
    assert unattended.saved == 1
    assert unattended.next(status(last=SAVED), 1.5, resettable=True) is Wish.START


def test_in_lockstep_a_recorder_that_comes_late_lets_a_scene_pass_before_it_records() -> None:
    unattended = Unattended(LOCKSTEP)
    blind = status(waiting_for=("joint_states", "primary"))
    assert unattended.next(blind, 0.0, resettable=True) is None
    unattended.on_task_end()  # the simulator's last word, latched
    assert unattended.next(blind, 1.0, resettable=True) is Wish.RESET
    assert unattended.next(status(), 1.1, resettable=True) is None
    assert not unattended.on_task_end()
    assert unattended.next(status(), 1.2, resettable=True) is Wish.START
    assert unattended.next(status(State.WAITING), 1.3, resettable=True) is Wish.RESET
    assert unattended.saved == 0


def test_in_lockstep_a_camera_that_no_scene_shows_is_an_error() -> None:
    unattended = Unattended(LOCKSTEP)
    blind = status(waiting_for=("camera top",))
    unattended.on_task_end()
    for _ in range(2):
        assert unattended.next(blind, 0.0, resettable=True) is Wish.RESET
        unattended.on_task_end()
    assert unattended.next(blind, 0.0, resettable=True) is Wish.RESET
    unattended.on_task_end()
    with pytest.raises(DataError, match="3 scenes passed without camera top"):
        unattended.next(blind, 0.0, resettable=True)


def test_an_episode_that_a_fault_ended_is_recorded_again() -> None:
    unattended = on_a_table()
    now = record_one(unattended, 0.0, STALE)
    assert unattended.saved == 0
    now = record_one(unattended, now + 5)
    record_one(unattended, now + 5)
    assert unattended.saved == 2


def test_three_faults_in_a_row_are_an_error_that_says_the_last_one() -> None:
    unattended = on_a_table()
    now = record_one(unattended, 0.0, STALE)
    now = record_one(unattended, now + 5, STALE)
    with pytest.raises(DataError, match=r"3 episodes in a row.*camera primary is stale"):
        record_one(unattended, now + 5, STALE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 0}, "num_episodes is 0"),
        ({"episode_s": 0.0}, "episode_seconds is 0"),
        ({"pause_s": -1.0}, "reset_seconds is -1"),
    ],
)
def test_senseless_numbers_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UnattendedConfig(**{"episodes": 2, "episode_s": 10.0, "pause_s": 5.0} | change)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("outcome", ["discarded", "nothing"])
def test_an_episode_that_somebody_discards_is_recorded_again_and_is_no_fault(outcome: str) -> None:
    unattended = on_a_table()
    now = 0.0
    for _ in range(4):
        gone = Finished(outcome=outcome, path="", steps=0, success=None, reason=DISCARDED)
        now = record_one(unattended, now, gone) + 5
    assert unattended.saved == 0
    assert unattended.next(status(), now, resettable=False) is Wish.START


def test_a_recorder_that_somebody_starts_during_a_reset_is_left_to_them() -> None:
    unattended = Unattended(CONFIG)
    assert unattended.next(status(), 0.0, resettable=True) is Wish.RESET
    assert unattended.on_reset(status(State.RECORDING)) is None
    assert unattended.next(status(State.RECORDING), 60.0, resettable=True) is None
    assert unattended.next(status(last=SAVED), 61.0, resettable=True) is Wish.RESET


@pytest.mark.parametrize(
    ("resettable", "limit_s", "what"), [(False, 60, "the service lift/next"), (True, 600, "the end of .* lift/episode")]
)
def test_a_simulator_in_lockstep_is_not_waited_for_without_end(resettable: bool, limit_s: int, what: str) -> None:
    unattended = Unattended(LOCKSTEP)
    assert unattended.waits_for is None
    assert unattended.next(status(), 0.0, resettable=resettable) is None
    assert re.fullmatch(what, str(unattended.waits_for))
    # Somebody else records: nothing is waited for, and the wait begins anew.
    assert unattended.next(status(State.RECORDING), 10.0, resettable=resettable) is None
    assert unattended.waits_for is None
    assert unattended.next(status(), 20.0, resettable=resettable) is None
    assert unattended.next(status(), 19.9 + limit_s, resettable=resettable) is None
    with pytest.raises(DataError, match=rf"lockstep: {what} has not come within {limit_s} s; .*LIFT_LOCKSTEP=false"):
        unattended.next(status(), 20.0 + limit_s, resettable=resettable)


def test_a_wait_for_a_simulator_in_lockstep_is_over_with_the_scene() -> None:
    unattended = Unattended(LOCKSTEP)
    unattended.next(status(), 0.0, resettable=True)
    unattended.on_task_end()
    assert unattended.next(status(), 1.0, resettable=True) is Wish.START
    assert unattended.waits_for is None
