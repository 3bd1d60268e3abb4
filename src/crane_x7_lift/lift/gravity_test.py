from __future__ import annotations

from importlib.resources import files

import mujoco
import numpy as np

from crane_x7_vla.robot import CRANE_X7
from lift.gravity import GravityModel


def test_torques_are_those_of_the_simulator() -> None:
    model = mujoco.MjModel.from_xml_path(str(files("lift") / "assets" / "crane_x7.xml"))
    data = mujoco.MjData(model)
    gravity = GravityModel()
    rng = np.random.default_rng(0)
    for _ in range(20):
        arm = rng.uniform(CRANE_X7.lower[:7], CRANE_X7.upper[:7])
        data.qpos[:7] = arm
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(gravity.torques(arm), data.qfrc_bias[:7], atol=1e-6)
        np.testing.assert_allclose(gravity.lead(arm), data.qfrc_bias[:7] / model.actuator_gainprm[:7, 0], atol=1e-6)


def test_a_stretched_arm_weighs_what_the_facts_say() -> None:
    """Static torque of joint 2 with the arm horizontal: about 3.64 N m without fingers' opening and camera."""
    torques = GravityModel().torques(np.array([0.0, -np.pi / 2, 0, 0, 0, 0, 0]))
    assert 3.5 < abs(torques[1]) < 3.8
    assert 1.25 < abs(torques[3]) < 1.42
