from __future__ import annotations

import math

import numpy as np
import pytest

from crane_x7_vla.errors import ConfigError, DataError
from crane_x7_vla.robot import CRANE_X7, robot_spec


def test_order_accepts_any_order_and_other_joints() -> None:
    positions = [float(i) for i in range(CRANE_X7.size)]
    names = [*reversed(CRANE_X7.joint_names), "crane_x7_gripper_finger_b_joint"]
    ordered = CRANE_X7.order(names, [*reversed(positions), 99.0])
    assert ordered.dtype == np.float32
    np.testing.assert_array_equal(ordered, np.array(positions, np.float32))


def test_order_names_the_missing_joint() -> None:
    with pytest.raises(DataError, match="lacks crane_x7_gripper_finger_a_joint of crane_x7"):
        CRANE_X7.order(CRANE_X7.joint_names[:7], [0.0] * 7)


def test_order_refuses_names_without_positions() -> None:
    with pytest.raises(DataError, match="8 names but 7 positions"):
        CRANE_X7.order(CRANE_X7.joint_names, [0.0] * 7)


def test_order_refuses_a_joint_that_is_there_twice() -> None:
    names = ["conveyor", *CRANE_X7.joint_names, CRANE_X7.joint_names[2], "conveyor"]
    with pytest.raises(DataError, match=f"has {CRANE_X7.joint_names[2]} more than once"):
        CRANE_X7.order(names, [0.0] * len(names))
    names.remove(CRANE_X7.joint_names[2])
    assert CRANE_X7.order(names, [0.0] * len(names)).shape == (8,)


def test_limits_are_those_of_the_urdf() -> None:
    degrees = [(-157, 157), (-90, 90), (-157, 157), (-159, 0), (-157, 157), (-90, 90), (-167, 167), (-5, 90)]
    for i, (lower, upper) in enumerate(degrees):
        assert CRANE_X7.lower[i] == pytest.approx(math.radians(lower))
        assert CRANE_X7.upper[i] == pytest.approx(math.radians(upper))
    home = np.array(CRANE_X7.home, np.float32)
    np.testing.assert_array_equal(CRANE_X7.clamp(home), home)


def test_clamp_holds_each_joint_within_its_limits() -> None:
    clamped = CRANE_X7.clamp(np.full(8, 9.0, dtype=np.float32))
    np.testing.assert_array_equal(clamped, np.array(CRANE_X7.upper, np.float32))


def test_an_unknown_robot_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown robot 'panda'; known robots: crane_x7"):
        robot_spec("panda")
