"""A scripted demonstrator for picking up: memoryless feedback on the joints and the object's pose."""

from __future__ import annotations

import math

import numpy as np

from crane_x7_vla import kinematics
from lift.gravity import GravityModel
from lift.tasks.pick_up import Task

DISTURBANCE = 0.012
"""Noise on the executed targets, rad, under which the expert still succeeds and shows how to recover."""

_OPEN, _CLOSED = 0.60, 0.10
# The gripper has stopped on the cube when it is told to close and stays wider than this, rad.
_ON_CUBE = (0.13, 0.34)
_NEAR_SIDE, _NEAR_HEIGHT = 0.010, 0.006
_GRASP_BELOW_CENTRE = 0.002
_LIFT_TO = 0.13
_GAIN, _LARGEST_STEP, _SMALLEST_STEP = 0.35, 0.035, 0.010
# Descend only as fast as the sideways error closes: metres of height kept per metre of error.
_FUNNEL = 2.5
_LARGEST_TURN = 0.25


class PickUpExpert:
    """Gripper down, one vertical plane (joints 3 and 5 at zero), arm weight carried by leading the target.

    ``act`` needs nothing but what it is given, so it may run in another process than the simulator.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._gravity = GravityModel()

    def act(self, state: np.ndarray, task_state: np.ndarray, commanded: np.ndarray) -> np.ndarray:
        """Next joint target float32 [8] rad from state [8], task_state [K] and the target in force [8]."""
        arm, gripper = state[:7].astype(np.float64), float(state[7])
        cube = task_state[:3].astype(np.float64)
        tip = kinematics.tip(arm)
        aside = float(np.hypot(*(cube[:2] - tip[:2])))
        grasp_height = cube[2] - _GRASP_BELOW_CENTRE
        near = aside < _NEAR_SIDE and abs(tip[2] - grasp_height) < _NEAR_HEIGHT
        told_to_close = float(commanded[7]) < _ON_CUBE[0]
        held = told_to_close and _ON_CUBE[0] < gripper < _ON_CUBE[1] and aside < 2 * _NEAR_SIDE
        if held:
            goal, opening = np.array([tip[0], tip[1], _LIFT_TO]), _CLOSED
        elif near:
            goal, opening = np.array([cube[0], cube[1], grasp_height]), _CLOSED
        else:
            above = grasp_height + _FUNNEL * max(0.0, aside - 0.5 * _NEAR_SIDE)
            goal, opening = np.array([cube[0], cube[1], min(above, max(tip[2], _LIFT_TO))]), _OPEN
        step = _toward(goal - tip)
        finger_line = kinematics.forward(arm)[:2, 0]
        yaw = math.atan2(finger_line[1], finger_line[0])
        if not held:
            yaw += float(np.clip(_quarter(_yaw(task_state[3:7]) - yaw), -_LARGEST_TURN, _LARGEST_TURN))
        target = kinematics.reach_down(tip + step, yaw)
        if target is None:
            target = arm
        joints = np.append(target, opening)
        joints[:7] += self._gravity.lead(arm)
        return self._task.robot.clamp(joints)


def _toward(way: np.ndarray) -> np.ndarray:
    """Part of the way [3] m that is gone in one control period; never so little that joint friction swallows it."""
    distance = float(np.linalg.norm(way))
    length = min(_LARGEST_STEP, max(_GAIN * distance, min(distance, _SMALLEST_STEP)))
    return way * (length / max(distance, 1e-9))


def _yaw(quaternion: np.ndarray) -> float:
    """Turn about the vertical of a body's quaternion (w, x, y, z), rad."""
    w, x, y, z = (float(v) for v in quaternion)
    return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def _quarter(angle: float) -> float:
    """The same turn for a cube, in [-pi/4, pi/4)."""
    return (angle + math.pi / 4) % (math.pi / 2) - math.pi / 4
