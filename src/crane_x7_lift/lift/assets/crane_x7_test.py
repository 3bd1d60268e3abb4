"""The model is the arm of the data sheets: kinematics, masses, servos, gripper."""

from __future__ import annotations

import math
from importlib.resources import files

import mujoco
import numpy as np
import pytest

from crane_x7_vla import kinematics
from crane_x7_vla.robot import CRANE_X7

# RT's crane_x7_description, turned into the link frames: mass in kg, centre in mm, Ixx Iyy Izz in 1e-6 kg m².
INERTIALS = {
    "crane_x7_shoulder_fixed_part_link": (0.388, (-6.73, -0.001, 17.9), (325, 483, 586)),
    "crane_x7_shoulder_revolute_part_link": (0.253, (0.243, -0.105, 47.0), (179, 176, 89.6)),
    "crane_x7_upper_arm_fixed_part_link": (0.136, (0.031, 0.019, 34.2), (168, 134, 96.2)),
    "crane_x7_upper_arm_revolute_part_link": (0.321, (-13.7, -0.081, 95.2), (1820, 1880, 159)),
    "crane_x7_lower_arm_fixed_part_link": (0.222, (-9.39, 0.064, 80.4), (489, 503, 114)),
    "crane_x7_lower_arm_revolute_part_link": (0.207, (-0.084, 0.462, 63.7), (290, 257, 87.5)),
    "crane_x7_wrist_link": (0.140, (6.1, 0.826, -3.55), (40.1, 73.5, 61.3)),
    "crane_x7_gripper_base_link": (0.121, (0.108, -1.03, 20.8), (32.0, 41.4, 42.9)),
    "crane_x7_gripper_finger_a_link": (0.0158, (-2.65, 3.54, 26.9), (10.1, 6.24, 4.95)),
    "crane_x7_gripper_finger_b_link": (0.0139, (3.01, 2.85, 30.9), (7.48, 4.37, 4.09)),
}
# Opening in degrees: gap between the tips and their distance from gripper_base, mm (geometry of RT's finger mesh).
GAPS = {
    0: (0.0, 84.0),
    5: (10.6, 84.8),
    10: (21.2, 85.2),
    15: (31.9, 85.1),
    20: (42.5, 84.5),
    30: (63.2, 82.0),
    45: (91.9, 74.9),
    60: (115.9, 64.4),
    90: (144.0, 36.0),
}


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(str(files("lift") / "assets" / "crane_x7.xml"))


@pytest.fixture
def data(model: mujoco.MjModel) -> mujoco.MjData:
    return mujoco.MjData(model)


def test_joints_and_servos_are_those_of_the_robot_in_its_order(model: mujoco.MjModel) -> None:
    for index, name in enumerate(CRANE_X7.joint_names):
        limits = (CRANE_X7.lower[index], CRANE_X7.upper[index])
        assert model.joint(name).qposadr[0] == index
        np.testing.assert_allclose(model.joint(name).range, limits, atol=1e-6)
        assert model.actuator_trnid[index, 0] == model.joint(name).id
        np.testing.assert_allclose(model.actuator_ctrlrange[index], limits, atol=1e-6)


def test_forward_kinematics_are_those_of_the_library(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        arm = rng.uniform(CRANE_X7.lower[:7], CRANE_X7.upper[:7])
        data.qpos[:7] = arm
        mujoco.mj_kinematics(model, data)
        pose = kinematics.forward(arm)
        gripper = data.body("crane_x7_gripper_base_link")
        np.testing.assert_allclose(gripper.xpos, pose[:3, 3], atol=1e-9)
        np.testing.assert_allclose(gripper.xmat.reshape(3, 3), pose[:3, :3], atol=1e-9)
        np.testing.assert_allclose(data.site("tip").xpos, kinematics.tip(arm), atol=1e-9)


def test_masses_and_inertias_are_those_of_the_description(model: mujoco.MjModel) -> None:
    for name, (mass, centre, inertia) in INERTIALS.items():
        body = model.body(name)
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, body.iquat)
        rotation = rotation.reshape(3, 3)
        tensor = rotation @ np.diag(body.inertia) @ rotation.T
        np.testing.assert_allclose(body.mass[0], mass, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(1e3 * body.ipos, centre, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(1e6 * np.diag(tensor), inertia, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(model.body_mass.sum(), 1.818, atol=5e-4)
    fixed = INERTIALS["crane_x7_shoulder_fixed_part_link"][0]
    np.testing.assert_allclose(model.body_mass.sum() - fixed, 1.430, atol=5e-4)


@pytest.mark.parametrize("released_from", ["above", "below"])
def test_the_stretched_arm_sags_under_its_weight(
    model: mujoco.MjModel, data: mujoco.MjData, released_from: str
) -> None:
    """Gravity over stiffness: 3.64 / 48.8 rad on joint 2, 1.33 / 18.9 rad on joint 4.

    Friction (0.2 N m, +-0.004 and +-0.011 rad) does not hold the arm up in MuJoCo: its constraint gives way slowly, so
    that after some seconds the sag is the same from both sides.
    """
    command = np.zeros(8)
    command[1] = -math.pi / 2 + 0.1
    data.ctrl[:] = command
    data.qpos[:8] = command
    if released_from == "below":
        data.qpos[1], data.qpos[3] = command[1] - 0.11, -0.12
    mujoco.mj_step(model, data, 2500)
    sag = command - data.qpos[:8]
    np.testing.assert_allclose(sag[1], 0.075, atol=0.001)
    np.testing.assert_allclose(sag[3], 0.070, atol=0.001)


@pytest.mark.parametrize("joint", range(CRANE_X7.size))
def test_a_servo_reaches_its_stall_torque_and_its_speed_and_no_more(
    model: mujoco.MjModel, data: mujoco.MjData, joint: int
) -> None:
    """XM430-W350: 4.1 N m and 4.82 rad/s. XM540-W270 on joint 2: 10.6 N m and 3.12 rad/s."""
    stall, no_load = (10.6, 3.12) if joint == 1 else (4.1, 4.82)
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_GRAVITY | mujoco.mjtDisableBit.mjDSBL_CONTACT
    try:
        lower, upper = CRANE_X7.lower[joint], CRANE_X7.upper[joint]
        data.qpos[joint], data.ctrl[joint] = lower, upper
        data.qpos[8] = data.qpos[7]
        force = speed = 0.0
        while data.qpos[joint] < 0.5 * (lower + upper):
            mujoco.mj_step(model, data)
            force = max(force, abs(data.actuator_force[joint]))
            speed = max(speed, abs(data.qvel[joint]))
            assert data.time < 2.0
    finally:
        model.opt.disableflags = 0
    assert force == pytest.approx(stall)
    # The gripper's servo drives two fingers, each with its friction.
    friction = 2 * 0.8 if joint == CRANE_X7.gripper_index else 0.2
    assert 0.9 * (1 - friction / stall) * no_load < speed < 1.005 * no_load


@pytest.mark.parametrize("degrees", GAPS)
def test_the_gap_between_the_finger_tips(model: mujoco.MjModel, data: mujoco.MjData, degrees: int) -> None:
    gap, height = GAPS[degrees]
    data.qpos[7:9] = math.radians(degrees)
    mujoco.mj_kinematics(model, data)
    base = data.body("crane_x7_gripper_base_link").xpos
    tip_a, tip_b = data.site("tip_a").xpos - base, data.site("tip_b").xpos - base
    np.testing.assert_allclose(1000 * np.linalg.norm(tip_a - tip_b), gap, atol=0.06)
    np.testing.assert_allclose(1000 * np.array([tip_a[2], tip_b[2]]), height, atol=0.06)
    np.testing.assert_allclose(tip_a[0], -tip_b[0], atol=1e-12)


def test_the_second_finger_follows_the_first(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    data.ctrl[7] = 0.9
    largest = 0.0
    for _ in range(100):
        mujoco.mj_step(model, data, 5)
        largest = max(largest, abs(data.qpos[7] - data.qpos[8]))
    assert data.qpos[7] > 0.85
    assert largest < 0.02


def test_nothing_touches_at_home_nor_upright_nor_reaching_for_the_table(
    model: mujoco.MjModel, data: mujoco.MjData
) -> None:
    poses = [np.zeros(7), np.array(CRANE_X7.home[:7])]
    for x, y in ((0.19, -0.05), (0.19, 0.05), (0.29, -0.05), (0.29, 0.05)):
        arm = kinematics.reach_down(np.array([x, y, 0.013]), 0.3)
        assert arm is not None
        poses.append(arm)
    for arm in poses:
        data.qpos[:7] = arm
        data.qpos[7:9] = 0.6
        mujoco.mj_forward(model, data)
        touching = [(model.geom(c.geom1).name, model.geom(c.geom2).name) for c in data.contact]
        assert not touching
