"""The gripper holds: the demonstrations and every policy rest on it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crane_x7_vla import kinematics
from lift import make_env
from lift.gravity import GravityModel
from lift.interface import Simulator

HZ = 50.0
OPEN, CLOSED = 0.6, 0.1


class Hand:
    """Moves the tip in straight lines, carrying the arm's weight, and keeps the cube's place in the gripper."""

    def __init__(self, env: Simulator, seed: int) -> None:
        self.env = env
        (observation,) = env.reset(np.array([seed]))
        self.state = observation.state
        self.arm = observation.state[:7].astype(float)
        self.opening = OPEN
        self._gravity = GravityModel()

    def cube(self) -> np.ndarray:
        """float64 [3] m, the cube's centre in the gripper's frame."""
        pose = kinematics.forward(self.state[:7])
        return pose[:3, :3].T @ (self.env.task_state[0, :3] - pose[:3, 3])

    def height(self) -> float:
        return float(self.env.task_state[0, 2])

    def move(self, arm: np.ndarray, opening: float, seconds: float) -> None:
        begin, width = self.arm.copy(), self.opening
        steps = round(seconds * HZ)
        for step in range(1, steps + 1):
            share = step / steps
            self.follow(begin + share * (arm - begin), width + share * (opening - width))

    def follow(self, arm: np.ndarray, opening: float) -> None:
        target = np.append(arm + self._gravity.lead(arm), opening).astype(np.float32)
        self.state = self.env.step(target[None]).observations[0].state
        self.arm, self.opening = arm, opening


def reach(position: np.ndarray, yaw: float) -> np.ndarray:
    arm = kinematics.reach_down(position, yaw)
    assert arm is not None
    return arm


@pytest.mark.parametrize("seed", [0, 1])
def test_a_cube_is_lifted_held_for_ten_seconds_and_shaken(seed: int) -> None:
    env = make_env("mujoco", "PickUp-CRANE-X7", control_hz=HZ, cameras=(), max_steps=10_000)
    hand = Hand(env, seed)
    x, y, z, w, _, _, turn = env.task_state[0].tolist()
    yaw = 2 * math.atan2(turn, w)
    hand.move(reach(np.array([x, y, z + 0.06]), yaw), OPEN, 1.0)
    hand.move(reach(np.array([x, y, z - 0.002]), yaw), OPEN, 0.7)
    hand.move(hand.arm, CLOSED, 0.5)
    hand.move(reach(np.array([x, y, 0.13]), yaw), CLOSED, 1.0)
    hand.move(hand.arm, CLOSED, 0.5)
    assert hand.height() > 0.11

    grasped = hand.cube()
    held = [hand.cube()]
    for _ in range(round(10 * HZ)):
        hand.follow(hand.arm, CLOSED)
        held.append(hand.cube())
    slip = np.linalg.norm(np.array(held) - grasped, axis=1).max()
    assert slip < 0.001

    still, grasped = hand.arm.copy(), hand.cube()
    shaken = []
    for step in range(1, round(3 * HZ) + 1):
        time = step / HZ
        swing = still.copy()
        swing[0] += 0.25 * math.sin(2 * math.pi * 1.5 * time)
        swing[3] += 0.12 * math.sin(2 * math.pi * 2.0 * time)
        hand.follow(swing, CLOSED)
        shaken.append(hand.cube())
    swung = np.linalg.norm(np.array(shaken) - grasped, axis=1).max()
    assert swung < 0.005
    assert hand.height() > 0.08
