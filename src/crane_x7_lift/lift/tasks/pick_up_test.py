from __future__ import annotations

import math

import numpy as np

from crane_x7_vla import kinematics
from lift.tasks.pick_up import PICK_UP


def test_starts_fill_the_region_and_are_within_reach() -> None:
    starts = [PICK_UP.sample_start(np.random.default_rng(seed)) for seed in range(400)]
    positions = np.array([start.position for start in starts])
    x, y, half = PICK_UP.region
    assert half >= 0.05
    low, high = np.array([x - half, y - half]), np.array([x + half, y + half])
    assert (positions[:, :2] >= low).all()
    assert (positions[:, :2] <= high).all()
    # Every quarter of the region is used, and its edges.
    np.testing.assert_allclose(positions[:, :2].min(axis=0), low, atol=0.002)
    np.testing.assert_allclose(positions[:, :2].max(axis=0), high, atol=0.002)
    np.testing.assert_allclose(positions[:, 2], PICK_UP.cube.edge / 2)
    yaws = np.array([start.yaw for start in starts])
    assert np.abs(yaws).max() <= math.radians(30)
    assert yaws.min() < -0.5
    assert yaws.max() > 0.5
    tips = np.array([kinematics.tip(start.joints[:7]) for start in starts])
    offsets = np.abs(tips - PICK_UP.tip).max(axis=0)
    assert (offsets <= 0.03 + 1e-9).all()
    assert (offsets > 0.028).all()
    for start in starts:
        np.testing.assert_allclose(PICK_UP.robot.clamp(start.joints), start.joints, atol=1e-6)


def test_every_corner_of_the_region_can_be_grasped_from_above() -> None:
    x, y, half = PICK_UP.region
    for corner in ((x + i * half, y + j * half) for i in (-1, 1) for j in (-1, 1)):
        for height in (0.01, 0.2):
            assert kinematics.reach_down(np.array([*corner, height]), 0.5) is not None


def test_the_same_seed_gives_the_same_start() -> None:
    one, other = (PICK_UP.sample_start(np.random.default_rng([7, 0])) for _ in range(2))
    np.testing.assert_array_equal(one.joints, other.joints)
    np.testing.assert_array_equal(one.position, other.position)
    assert one.yaw == other.yaw
