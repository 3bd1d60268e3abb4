"""What the suite knows about a robot: joint names, order and limits. A second robot is a second ``RobotSpec``.

Before an arm of another geometry may be driven it also needs its ``kinematics``, which ``safety`` judges it by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crane_x7_vla.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotSpec:
    """Joints of a robot in the order of every state and action vector of the suite.

    lower, upper: position limits, rad. max_velocity: rad/s.
    gripper_index: which entry is the gripper; it is absolute in every action form.
    home: a pose from which tasks start, rad.
    """

    name: str
    joint_names: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    max_velocity: tuple[float, ...]
    home: tuple[float, ...]
    gripper_index: int

    def __post_init__(self) -> None:
        size = len(self.joint_names)
        for name in ("lower", "upper", "max_velocity", "home"):
            if len(getattr(self, name)) != size:
                raise ValueError(f"{self.name}: {name} has {len(getattr(self, name))} entries for {size} joints")
        if not 0 <= self.gripper_index < size:
            raise ValueError(f"{self.name}: gripper_index {self.gripper_index} is not one of {size} joints")

    @property
    def size(self) -> int:
        """Number of joints, the S and A of every vector."""
        return len(self.joint_names)

    @property
    def arm_indices(self) -> tuple[int, ...]:
        """Indices of the joints that are not the gripper."""
        return tuple(i for i in range(self.size) if i != self.gripper_index)

    def order(self, names: Sequence[str], positions: Sequence[float]) -> np.ndarray:
        """Joint positions of a message, in any order and with others among them -> float32 [S] rad.

        Raises DataError naming the joints that are missing or there twice, or when names and positions differ in
        length.
        """
        if len(names) != len(positions):
            raise DataError(f"joint state has {len(names)} names but {len(positions)} positions")
        twice = [name for name in self.joint_names if list(names).count(name) > 1]
        if twice:
            raise DataError(
                f"joint state has {', '.join(twice)} more than once; expected each joint of {self.name} once. Do two "
                "drivers publish into one topic?"
            )
        by_name = dict(zip(names, positions, strict=True))
        missing = [name for name in self.joint_names if name not in by_name]
        if missing:
            raise DataError(
                f"joint state lacks {', '.join(missing)} of {self.name}; it has: {', '.join(names) or 'no joints'}"
            )
        return np.array([by_name[name] for name in self.joint_names], dtype=np.float32)

    def clamp(self, positions: np.ndarray) -> np.ndarray:
        """float32 [..., S] rad, each joint held within its limits."""
        lower, upper = np.array(self.lower, dtype=np.float32), np.array(self.upper, dtype=np.float32)
        return np.clip(positions, lower, upper).astype(np.float32)


# Limits from RT's crane_x7_description (URDF), velocities likewise except joint 2, whose XM540-W270 reaches
# 3.14 rad/s at 12 V (Robotis data sheet) where the URDF allows 4.8. Joint 4's upper limit of 0.001 deg is kept as the
# servo's hard limit 0.
_PAN = math.radians(157.0)
CRANE_X7 = RobotSpec(
    name="crane_x7",
    joint_names=(
        "crane_x7_shoulder_fixed_part_pan_joint",
        "crane_x7_shoulder_revolute_part_tilt_joint",
        "crane_x7_upper_arm_revolute_part_twist_joint",
        "crane_x7_upper_arm_revolute_part_rotate_joint",
        "crane_x7_lower_arm_fixed_part_joint",
        "crane_x7_lower_arm_revolute_part_joint",
        "crane_x7_wrist_joint",
        "crane_x7_gripper_finger_a_joint",
    ),
    lower=(
        -_PAN,
        -math.pi / 2,
        -_PAN,
        -math.radians(159.0),
        -_PAN,
        -math.pi / 2,
        -math.radians(167.0),
        -math.radians(5.0),
    ),
    upper=(_PAN, math.pi / 2, _PAN, 0.0, _PAN, math.pi / 2, math.radians(167.0), math.pi / 2),
    max_velocity=(4.817, 3.14, 4.817, 4.817, 4.817, 4.817, 4.817, 4.817),
    home=(0.0, 0.3979, 0.0, -2.1994, 0.0563, 0.4817, 0.0, 0.0),
    gripper_index=7,
)

_ROBOTS = {CRANE_X7.name: CRANE_X7}


def robot_spec(name: str) -> RobotSpec:
    """The robot of that name; raises ConfigError that lists the known ones."""
    if name not in _ROBOTS:
        raise ConfigError(f"unknown robot '{name}'; known robots: {', '.join(sorted(_ROBOTS))}")
    return _ROBOTS[name]
