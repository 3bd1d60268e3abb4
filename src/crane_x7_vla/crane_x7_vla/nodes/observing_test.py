from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import Image, JointState

from crane_x7_vla.errors import DataError
from crane_x7_vla.nodes.messages import joint_state_message, rgb_to_image
from crane_x7_vla.nodes.observing import ObservationBuffer
from crane_x7_vla.protocol import JOINT_STATES
from crane_x7_vla.robot import CRANE_X7

MS = 1_000_000
SECOND = 1000 * MS


def joints(stamp: int, value: float) -> JointState:
    return joint_state_message(CRANE_X7, stamp, np.full(8, value, np.float32), np.zeros(8, np.float32))


def picture(stamp: int, value: int) -> Image:
    return rgb_to_image(np.full((2, 3, 3), value, np.uint8), stamp, "")


def buffer(history: int = 0) -> ObservationBuffer:
    return ObservationBuffer(CRANE_X7, ["primary", "wrist"], dt=0.1, history=history)


def fill(target: ObservationBuffer, stamp: int, value: int) -> None:
    target.add(JOINT_STATES, joints(stamp, value / 100))
    for camera in ("primary", "wrist"):
        target.add(camera, picture(stamp, value))


def test_the_exact_instant_is_observed() -> None:
    kept = buffer()
    for k in range(3):
        fill(kept, SECOND + k * 100 * MS, k)
    commanded = np.ones(8, np.float32)
    seen = kept.observe(SECOND + 100 * MS, instruction="pick up", commanded=commanded)
    assert seen.images["primary"][0, 0].tolist() == [1, 1, 1]
    assert seen.images["wrist"].shape == (2, 3, 3)
    assert seen.state[0] == np.float32(0.01)
    assert seen.stamp == 1.1
    assert seen.instruction == "pick up"
    np.testing.assert_array_equal(seen.commanded, commanded)


def test_missing_sources_of_an_instant_are_named() -> None:
    kept = buffer()
    kept.add("primary", picture(SECOND, 0))
    assert kept.missing(SECOND) == [JOINT_STATES, "wrist"]
    kept.add(JOINT_STATES, joints(SECOND, 0.0))
    kept.add("wrist", picture(SECOND + 1, 0))
    assert kept.missing(SECOND) == ["wrist"]
    with pytest.raises(DataError, match=r"wrist has nothing within 0 s of 1\.000 s"):
        kept.observe(SECOND, instruction="", commanded=None)


def test_sources_of_different_rates_are_paired_by_stamp() -> None:
    kept = buffer()
    for k in range(100):
        kept.add(JOINT_STATES, joints(SECOND + 5 * k * MS, k))
    for k in range(12):
        kept.add("primary", picture(SECOND + 33 * k * MS, k))
        kept.add("wrist", picture(SECOND + (33 * k + 9) * MS, k))
    assert kept.newest() == SECOND + 33 * 11 * MS
    seen = kept.observe(SECOND + 33 * 11 * MS, instruction="", commanded=None, tolerance=0.05)
    assert seen.images["primary"][0, 0, 0] == 11
    assert seen.images["wrist"][0, 0, 0] == 11
    assert seen.state[0] == 73.0
    with pytest.raises(DataError, match="wrist has nothing within"):
        kept.observe(SECOND + 33 * 11 * MS, instruction="", commanded=None, tolerance=0.005)


def test_a_stale_or_silent_source_is_named() -> None:
    kept = buffer()
    assert kept.newest() is None
    fill(kept, SECOND, 0)
    assert kept.problem(SECOND + 100 * MS, 0.5) is None
    kept.add(JOINT_STATES, joints(2 * SECOND, 0.0))
    kept.add("primary", picture(2 * SECOND, 0))
    assert kept.problem(2 * SECOND, 0.5) == "camera wrist is 1.00 s old, more than 0.5 s"
    assert "nothing from camera primary yet" in str(buffer().problem(SECOND, 0.5))
    assert "joint_states is" in str(kept.problem(20 * SECOND, 0.5))


def test_history_is_one_period_apart_newest_first_and_shorter_when_the_episode_is_young() -> None:
    kept = buffer(history=2)
    fill(kept, SECOND, 0)
    assert kept.observe(SECOND, instruction="", commanded=None).past == ()
    for k in range(1, 30):
        fill(kept, SECOND + k * 100 * MS, k)
    seen = kept.observe(SECOND + 29 * 100 * MS, instruction="", commanded=None)
    assert [earlier.images["primary"][0, 0, 0] for earlier in seen.past] == [28, 27]
    assert [round(earlier.stamp, 6) for earlier in seen.past] == [3.8, 3.7]


def test_memory_stays_bounded_and_a_restarted_source_starts_anew() -> None:
    kept = buffer()
    for k in range(1000):
        kept.add(JOINT_STATES, joints(SECOND + k * 10 * MS, k))
    kept.add("primary", picture(SECOND, 3))
    assert len(kept._messages[JOINT_STATES]) <= 51  # pyright: ignore[reportPrivateUsage]
    kept.add(JOINT_STATES, joints(SECOND, 7.0))
    assert kept.state(SECOND)[0] == 7.0
    assert kept.missing(SECOND + 50 * MS) == [JOINT_STATES, "primary", "wrist"]
    kept.clear()
    assert kept.missing(SECOND) == [JOINT_STATES, "primary", "wrist"]


def test_a_repeated_message_replaces_the_first() -> None:
    kept = buffer()
    fill(kept, SECOND, 1)
    fill(kept, SECOND, 2)
    assert kept.observe(SECOND, instruction="", commanded=None).images["wrist"][0, 0, 0] == 2
