"""Pick up the red cube: where it may lie, how the arm starts, and what counts as success. Knows no simulator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from crane_x7_vla import kinematics
from crane_x7_vla.robot import CRANE_X7, RobotSpec

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.08, 0.08),
    "green": (0.10, 0.55, 0.15),
    "blue": (0.12, 0.25, 0.75),
    "yellow": (0.90, 0.75, 0.10),
}
POSE_NAMES = ("x", "y", "z", "qw", "qx", "qy", "qz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cube:
    """A box that can be grasped. edge: m. mass: kg. colour: key of ``COLOURS``."""

    name: str
    edge: float
    mass: float
    colour: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start of an episode. arm: float64 [S] rad. position: float64 [3] m, yaw: rad, of the object."""

    joints: np.ndarray
    position: np.ndarray
    yaw: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A cube anywhere in a square region of the table is to be lifted and held.

    region: centre x, y and half side of the square in m, base_link. yaw: largest turn of the cube, rad.
    tip, tip_jitter: where the finger tips start and how far around, m. gripper: opening at the start, rad.
    lift: height in m above its resting height that counts as lifted. hold_s: for how long it must be held, s.
    """

    env_id: str
    instruction: str
    robot: RobotSpec
    cube: Cube
    region: tuple[float, float, float]
    yaw: float
    tip: tuple[float, float, float]
    tip_jitter: float
    gripper: float
    lift: float
    hold_s: float

    @property
    def task_state_names(self) -> tuple[str, ...]:
        """The cube's pose in base_link: position in m and quaternion."""
        return tuple(f"{self.cube.name}_{axis}" for axis in POSE_NAMES)

    def sample_start(self, rng: np.random.Generator) -> Start:
        """A random start, from the generator alone."""
        position = self.sample_position(rng)
        yaw = float(rng.uniform(-self.yaw, self.yaw))
        tip = np.array(self.tip) + rng.uniform(-self.tip_jitter, self.tip_jitter, size=3)
        arm = kinematics.reach_down(tip, 0.0)
        if arm is None:
            raise RuntimeError(f"start pose {tip} of {self.env_id} is out of reach")
        return Start(joints=np.append(arm, self.gripper), position=position, yaw=yaw)

    def sample_position(self, rng: np.random.Generator) -> np.ndarray:
        """float64 [3] m: a place of the resting cube's centre."""
        x, y, half = self.region
        return np.array([x + rng.uniform(-half, half), y + rng.uniform(-half, half), self.cube.edge / 2])

    def lifted(self, task_state: np.ndarray) -> np.ndarray:
        """bool [N] from task_state [N, K]: whether the cube is high enough now."""
        return task_state[:, 2] >= self.cube.edge / 2 + self.lift

    def lost(self, task_state: np.ndarray) -> np.ndarray:
        """bool [N]: whether the cube is where the arm cannot fetch it any more."""
        radius = np.hypot(task_state[:, 0], task_state[:, 1])
        return (task_state[:, 2] < -0.02) | (radius > 0.42) | (radius < 0.09)


PICK_UP = Task(
    env_id="PickUp-CRANE-X7",
    instruction="pick up the red cube",
    robot=CRANE_X7,
    cube=Cube(name="cube", edge=0.03, mass=0.03, colour="red"),
    region=(0.24, 0.0, 0.05),
    yaw=math.radians(30),
    tip=(0.22, 0.0, 0.13),
    tip_jitter=0.03,
    gripper=0.6,
    lift=0.05,
    hold_s=1.0,
)
