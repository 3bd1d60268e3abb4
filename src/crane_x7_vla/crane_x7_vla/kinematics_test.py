from __future__ import annotations

import math

import numpy as np
import pytest

from crane_x7_vla import kinematics
from crane_x7_vla.robot import CRANE_X7

LOWER, UPPER = np.array(CRANE_X7.lower[:7]), np.array(CRANE_X7.upper[:7])

# Poses of RT's SRDF and their gripper_base position, tip and approach direction, computed from RT's URDF.
TABLE = {
    "vertical": ([0.0] * 7, (0, 0, 0.624), (0, 0, 0.708), (0, 0, 1)),
    "home": (
        [0, 0.3979, 0, -2.1994, 0.0563, 0.4817, 0],
        (0.1649, -0.0005, 0.2830),
        (0.2463, -0.0027, 0.3038),
        (0.968, -0.026, 0.248),
    ),
    "rest": (
        [0, math.pi / 8, 0, -5 * math.pi / 8, 0, -math.pi / 4, math.pi / 2],
        (0.1678, 0, 0.3225),
        (0.2272, 0, 0.2631),
        (0.707, 0, -0.707),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_forward_agrees_with_the_urdf(name: str) -> None:
    arm, position, tip, approach = TABLE[name]
    pose = kinematics.forward(np.array(arm))
    np.testing.assert_allclose(pose[:3, 3], position, atol=6e-5)
    np.testing.assert_allclose(pose[:3, 2], approach, atol=6e-4)
    np.testing.assert_allclose(kinematics.tip(np.array(arm)), tip, atol=6e-5)


def test_positive_joint_two_leans_backwards_and_joint_one_turns_left() -> None:
    np.testing.assert_allclose(
        kinematics.forward(np.array([0, 0.5, 0, 0, 0, 0, 0]))[:3, 3], (-0.249, 0, 0.561), atol=6e-4
    )
    turned = kinematics.forward(np.array([math.pi / 2, 0, 0, -1.0, 0, 0, 0]))[:3, 3]
    np.testing.assert_allclose(turned, (0, 0.226, 0.500), atol=6e-4)


def test_jacobian_is_the_derivative_of_forward() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        arm = rng.uniform(LOWER, UPPER)
        slope = kinematics.jacobian(arm)
        for joint in range(7):
            step = np.zeros(7)
            step[joint] = 1e-6
            after, before = kinematics.forward(arm + step), kinematics.forward(arm - step)
            np.testing.assert_allclose((after - before)[:3, 3] / 2e-6, slope[:3, joint], atol=1e-6)
            spin = (after[:3, :3] - before[:3, :3]) / 2e-6 @ kinematics.forward(arm)[:3, :3].T
            np.testing.assert_allclose([spin[2, 1], spin[0, 2], spin[1, 0]], slope[3:, joint], atol=1e-6)


def test_inverse_finds_poses_the_arm_can_reach() -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(50):
        goal = rng.uniform(0.8 * LOWER, 0.8 * UPPER)
        target = kinematics.forward(goal)
        arm = kinematics.inverse(target, np.clip(goal + rng.normal(0, 0.2, 7), LOWER, UPPER), LOWER, UPPER)
        if arm is not None:
            found += 1
            assert np.all(arm >= LOWER)
            assert np.all(arm <= UPPER)
            np.testing.assert_allclose(kinematics.forward(arm), target, atol=3e-4)
    assert found >= 45


def test_inverse_says_none_for_a_pose_out_of_reach() -> None:
    target = kinematics.forward(np.zeros(7))
    target[:3, 3] = (0.9, 0.0, 0.3)
    assert kinematics.inverse(target, np.array(CRANE_X7.home[:7]), LOWER, UPPER) is None


@pytest.mark.parametrize("yaw", [-1.2, -0.3, 0.0, 0.5, 1.4])
def test_reach_down_points_the_gripper_down_at_the_position(yaw: float) -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        position = np.array([rng.uniform(0.12, 0.30), rng.uniform(-0.15, 0.15), rng.uniform(0.01, 0.15)])
        arm = kinematics.reach_down(position, yaw)
        assert arm is not None
        pose = kinematics.forward(arm)
        np.testing.assert_allclose(kinematics.tip(arm), position, atol=1e-9)
        np.testing.assert_allclose(pose[:3, 2], (0, 0, -1), atol=1e-9)
        across = pose[0, 0] * math.cos(yaw) + pose[1, 0] * math.sin(yaw)
        assert abs(across) == pytest.approx(1.0)
        assert arm[2] == arm[4] == 0.0


def test_reach_down_says_none_where_the_arm_is_too_short() -> None:
    assert kinematics.reach_down(np.array([0.6, 0.0, 0.05]), 0.0) is None


def test_half_a_turn_has_the_axis_it_is_about() -> None:
    """Its sines vanish, so the axis must come from elsewhere, signs included."""
    axis = np.array([1.0, -1.0, 0.0]) / math.sqrt(2)
    rotation = 2 * np.outer(axis, axis) - np.eye(3)
    vector = kinematics._rotation_vector(rotation)  # pyright: ignore[reportPrivateUsage]
    np.testing.assert_allclose(vector * np.sign(vector[0]), math.pi * axis, atol=1e-9)


@pytest.mark.parametrize(
    ("degrees", "gap", "height"),
    # Computed from the finger's profile in RT's meshes.
    [(0, 0.0, 84.0), (5, 10.6, 84.8), (10, 21.2, 85.2), (30, 63.2, 82.0), (60, 115.9, 64.4), (90, 144.0, 36.0)],
)
def test_finger_tips_open_as_those_of_the_gripper(degrees: float, gap: float, height: float) -> None:
    arm = np.array(CRANE_X7.home[:7])
    a, b = kinematics.finger_tips(arm, math.radians(degrees))
    pose = kinematics.forward(arm)
    assert np.linalg.norm(a - b) * 1000 == pytest.approx(gap, abs=0.06)
    assert ((a + b) / 2 - pose[:3, 3]) @ pose[:3, 2] * 1000 == pytest.approx(height, abs=0.06)
    # Finger a opens towards -x of gripper_base.
    assert (a - b) @ pose[:3, 0] <= 0
    if degrees == 0:
        np.testing.assert_allclose([a, b], [kinematics.tip(arm)] * 2, atol=1e-12)


def test_the_elbow_is_never_lower_than_the_shoulder() -> None:
    rng = np.random.default_rng(0)
    for arm in rng.uniform(LOWER, UPPER, (500, 7)):
        assert kinematics.link_poses(arm)[3][2, 3] >= kinematics.SHOULDER_HEIGHT - 1e-9


def test_the_wrist_of_an_arm_that_reaches_down_is_above_its_tips() -> None:
    arm = kinematics.reach_down(np.array([0.25, 0.05, 0.02]), 0.3)
    assert arm is not None
    np.testing.assert_allclose(kinematics.wrist(arm), [0.25, 0.05, 0.02 + kinematics.WRIST_TO_TIP], atol=1e-9)
