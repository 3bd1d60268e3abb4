"""The targets that the arm was given, recorded with its states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crane_x7_log.recorder_rig_test import CONFIG, MS, Make
from crane_x7_log.sampling import ARM_COMMAND


def test_the_commanded_target_is_the_one_in_force_at_the_end_of_the_step(make: Make) -> None:
    rig = make(CONFIG)

    def ramp(stamp_ns: int) -> np.ndarray:
        """Where the arm shall be 50 ms later: at 2 rad/s of header time."""
        return np.full(8, 2 * (stamp_ns / 1e9 + 0.05), np.float32)

    rig.run(0, 300, arm=ramp)
    rig.start()
    rig.run(300, 1500, arm=ramp)
    rig.recorder.stop(rig.now)
    episode, _ = rig.saved()
    assert episode.commanded is not None
    assert len(episode.stamp) >= 9
    np.testing.assert_allclose(episode.commanded, np.tile(2 * (episode.stamp[:, None] + 0.1), (1, 8)), atol=1e-5)


def test_a_command_without_a_stamp_is_in_force_when_it_comes_by_the_clock_of_the_joint_states(make: Make) -> None:
    """Commands at 0, 50, 100 ms …; a step that ends between two holds the one before, one that ends with one that."""
    rig = make(CONFIG)

    def said(stamp_ns: int) -> np.ndarray:
        return np.full(8, stamp_ns / 1e9, np.float32)

    rig.ahead_ns = 500_000 * MS
    rig.run(0, 300, arm=said, at_once=True)
    rig.start()
    rig.run(300, 1500, arm=said, at_once=True)
    rig.recorder.stop(rig.now)
    episode, metadata = rig.saved()
    assert episode.commanded is not None
    assert len(episode.stamp) >= 9
    ends = np.round(episode.stamp + 0.1, 6)
    expected = np.floor(np.round(ends / 0.05, 3)) * 0.05
    np.testing.assert_allclose(episode.commanded, np.tile(expected[:, None], (1, 8)), atol=1e-4)
    assert metadata.dropped[ARM_COMMAND] == 0


def test_a_command_without_a_stamp_before_the_first_joint_state_is_told(make: Make) -> None:
    rig = make(replace(CONFIG, commanded="required"))
    rig.recorder.on_command(ARM_COMMAND, None, np.array([0]), np.ones((1, 7)), rig.now)
    assert "it has no stamp, and no joint state has said what time it is" in " ".join(rig.recorder.status().waiting_for)


def test_a_gripper_that_was_never_commanded_holds_where_it_was(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.recorder.on_command(ARM_COMMAND, 200 * MS, np.array([10 * MS]), np.ones((1, 7)), rig.now)
    rig.run(200, 1000)
    rig.recorder.stop(rig.now)
    episode, _ = rig.saved()
    assert episode.commanded is not None
    np.testing.assert_array_equal(episode.commanded[:, 7], np.full(len(episode.stamp), episode.state[0, 7]))
    np.testing.assert_array_equal(episode.commanded[2:, :7], 1.0)


def test_commands_of_an_episode_are_all_there_or_not_at_all(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1000)
    rig.run(1000, 2000, arm=lambda stamp: np.zeros(8, np.float32))
    rig.recorder.stop(rig.now)
    assert rig.saved()[0].commanded is None
    assert "it has no action/commanded" in rig.log.text
    off = make(replace(CONFIG, commanded="off"))
    off.run(0, 200, arm=lambda stamp: np.zeros(8, np.float32))
    off.start()
    off.run(200, 1000, arm=lambda stamp: np.zeros(8, np.float32))
    off.recorder.stop(off.now)
    assert off.saved()[0].commanded is None


def test_required_commands_are_waited_for(make: Make) -> None:
    rig = make(replace(CONFIG, commanded="required"))
    rig.run(0, 200)
    assert "arm_command (/arm), published by 1 node: start the teleoperation or the policy" in rig.start()
    rig.run(200, 1000)
    assert rig.recorder.status().state == "waiting"
    rig.run(1000, 2000, arm=lambda stamp: np.ones(8, np.float32))
    rig.recorder.stop(rig.now)
    episode, _ = rig.saved()
    assert episode.commanded is not None
    assert 0.9 <= episode.stamp[0] <= 1.1


def test_commands_from_before_a_reset_do_not_hold_after_it(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 500, arm=lambda stamp: np.full(8, 9, np.float32))
    rig.run(1500, 2000)
    rig.start()
    rig.run(2000, 3000)
    rig.recorder.stop(rig.now)
    assert rig.saved()[0].commanded is None
