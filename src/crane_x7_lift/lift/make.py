"""The table of simulators and tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from crane_x7_vla.errors import ConfigError
from lift.interface import CameraView, Simulator
from lift.rendering import choose_gl, choose_no_gl
from lift.tasks.pick_up import PICK_UP, Task

SIMULATORS = ("mujoco",)
TASKS: dict[str, Task] = {PICK_UP.env_id: PICK_UP}
DEFAULT_CAMERAS = (CameraView(name="primary", width=128, height=128), CameraView(name="wrist", width=128, height=128))


def find_task(env_id: str) -> Task:
    """The task of that name; raises ConfigError that lists the known ones."""
    if env_id not in TASKS:
        raise ConfigError(f"unknown environment '{env_id}'; known: {', '.join(TASKS)}")
    return TASKS[env_id]


def make_env(
    simulator: str,
    env_id: str,
    *,
    num_envs: int = 1,
    control_hz: float = 10.0,
    cameras: Sequence[CameraView] = DEFAULT_CAMERAS,
    max_steps: int = 80,
    disturbance: float = 0.0,
    draw_elsewhere: bool = False,
) -> Simulator:
    """A simulator with ``num_envs`` environments of one task.

    simulator: entry of ``SIMULATORS``. env_id: entry of ``TASKS``.
    control_hz: control periods per second; the rate of the data and of the policy.
    cameras: what is rendered; none renders nothing and needs no OpenGL. max_steps: control periods before truncation.
    disturbance: standard deviation in rad of a slowly changing error of the executed arm target, which explores states
    around a demonstration; the commanded target that is reported stays clean.
    draw_elsewhere: images show the object at another place than where it is, for finding out whether a policy looks.

    The simulator belongs to the thread that made it; ``close`` it before the interpreter ends.
    Raises ConfigError for a setting that is unknown or out of range, and where nothing can render.
    """
    if simulator not in SIMULATORS:
        raise ConfigError(f"unknown simulator '{simulator}'; known: {', '.join(SIMULATORS)}")
    task = find_task(env_id)
    for name, number in (("num_envs", num_envs), ("max_steps", max_steps)):
        if number < 1:
            raise ConfigError(f"{name} is {number}; expected 1 or more")
    if not (control_hz > 0 and math.isfinite(control_hz)):
        raise ConfigError(f"control_hz is {control_hz:g}; expected control periods per second, such as 10")
    if not (disturbance >= 0 and math.isfinite(disturbance)):
        raise ConfigError(f"disturbance is {disturbance:g}; expected 0 or a standard deviation in rad, such as 0.012")
    names = [camera.name for camera in cameras]
    if len(set(names)) != len(names):
        raise ConfigError(f"cameras are {', '.join(names)}; expected each name once")
    if cameras:
        choose_gl()
    else:
        choose_no_gl()
    # MuJoCo loads OpenGL when it is imported, so the choice comes first.
    from lift.simulators.mujoco import MujocoSimulator

    return MujocoSimulator(
        task,
        num_envs=num_envs,
        control_hz=control_hz,
        cameras=tuple(cameras),
        max_steps=max_steps,
        disturbance=disturbance,
        draw_elsewhere=draw_elsewhere,
    )
