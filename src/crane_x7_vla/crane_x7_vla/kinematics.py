"""Forward and inverse kinematics of the CRANE-X7 arm (seven joints, without the gripper).

Frames: ``base_link`` at the mounting plate, x forward, z up (REP-103); the tool frame is ``crane_x7_gripper_base_link``
with z along the fingers. Joint origins and axes from RT's crane_x7_description; all origins lie on z, all rpy are zero.
"""

from __future__ import annotations

import math

import numpy as np

ROBOT = "crane_x7"
"""Name of the ``RobotSpec`` these are the kinematics of."""

_Z = (0.0, 0.0, 1.0)
_MINUS_Y = (0.0, -1.0, 0.0)
# (origin z in the parent link in m, axis) of joints 1 to 7; the base's 5 mm plate is in the first.
JOINTS = (
    (0.041, _Z),
    (0.064, _MINUS_Y),
    (0.065, _Z),
    (0.185, _MINUS_Y),
    (0.121, _Z),
    (0.129, _MINUS_Y),
    (0.019, _Z),
)
SHOULDER_HEIGHT = 0.105
UPPER_ARM = 0.250
FOREARM = 0.250
TIP_OFFSET = 0.084
WRIST_TO_TIP = 0.019 + TIP_OFFSET
# Finger a turns about -y of gripper_base, finger b, its mirror image, about y: the axes' distance from the middle and
# height, and where the tip is seen from the axis with the fingers closed, m.
_FINGER_AXIS = (-0.012, 0.024)
_FINGER_TIP = (0.012, 0.060)


def _rotation(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    x, y, z = axis
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + math.sin(angle) * skew + (1.0 - math.cos(angle)) * skew @ skew


def forward(arm: np.ndarray) -> np.ndarray:
    """Arm joints float [7] rad -> float64 [4, 4] pose of gripper_base in base_link, m."""
    return link_poses(arm)[-1]


def link_poses(arm: np.ndarray) -> list[np.ndarray]:
    """float64 [4, 4] pose in base_link of each of the seven links; joint i's axis passes through link i's origin."""
    if len(arm) != len(JOINTS):
        raise ValueError(f"expected {len(JOINTS)} arm joints, got {len(arm)}")
    poses: list[np.ndarray] = []
    pose = np.eye(4)
    for (height, axis), angle in zip(JOINTS, arm, strict=True):
        pose = pose.copy()
        pose[:3, 3] += pose[:3, 2] * height
        pose[:3, :3] = pose[:3, :3] @ _rotation(axis, float(angle))
        poses.append(pose)
    return poses


def tip(arm: np.ndarray) -> np.ndarray:
    """float64 [3] m: the point between the closed finger tips, 84 mm along the gripper's z."""
    pose = forward(arm)
    return pose[:3, 3] + TIP_OFFSET * pose[:3, 2]


def wrist(arm: np.ndarray) -> np.ndarray:
    """float64 [3] m: where the axis of joint 6 crosses the forearm, the lowest point of an arm that bows to the table.

    The elbow needs no such function: joint 2 turns by 90 degrees at most, so it is never lower than the shoulder.
    """
    return link_poses(arm)[5][:3, 3]


def finger_tips(arm: np.ndarray, opening: float) -> np.ndarray:
    """float64 [2, 3] m: the tips of finger a and b, opened by ``opening`` rad; both are ``tip`` when closed."""
    pose = forward(arm)
    (axis_x, axis_z), (x, z) = _FINGER_AXIS, _FINGER_TIP
    side = axis_x + x * math.cos(opening) - z * math.sin(opening)
    height = axis_z + z * math.cos(opening) + x * math.sin(opening)
    return pose[:3, 3] + height * pose[:3, 2] + np.outer([side, -side], pose[:3, 0])


def jacobian(arm: np.ndarray) -> np.ndarray:
    """float64 [6, 7]: linear (m/rad) and angular velocity of gripper_base per joint velocity, in base_link."""
    poses = link_poses(arm)
    end = poses[-1][:3, 3]
    columns: list[np.ndarray] = []
    for pose, (_, axis) in zip(poses, JOINTS, strict=True):
        direction = pose[:3, :3] @ np.array(axis)
        columns.append(np.concatenate([np.cross(direction, end - pose[:3, 3]), direction]))
    return np.stack(columns, axis=1)


def inverse(target: np.ndarray, seed: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray | None:
    """Arm joints float64 [7] rad that bring gripper_base to ``target`` [4, 4], or None where none was found.

    Damped least squares from ``seed`` [7] within ``lower`` and ``upper`` [7]; 0.1 mm and 0.1 mrad count as reached.
    """
    arm = np.clip(np.asarray(seed, dtype=np.float64), lower, upper)
    for _ in range(200):
        pose = forward(arm)
        error = np.concatenate([target[:3, 3] - pose[:3, 3], _rotation_vector(target[:3, :3] @ pose[:3, :3].T)])
        if np.linalg.norm(error[:3]) < 1e-4 and np.linalg.norm(error[3:]) < 1e-4:
            return arm
        slope = jacobian(arm)
        step = slope.T @ np.linalg.solve(slope @ slope.T + 1e-4 * np.eye(6), error)
        arm = np.clip(arm + np.clip(step, -0.3, 0.3), lower, upper)
    return None


def _rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle of a rotation matrix, float64 [3] rad."""
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine = float(np.linalg.norm(skew)) / 2.0
    cosine = (float(np.trace(rotation)) - 1.0) / 2.0
    angle = math.atan2(sine, cosine)
    if sine > 1e-9:
        return skew / (2.0 * sine) * angle
    if cosine > 0:
        return np.zeros(3)
    # Half a turn: rotation + 1 is twice the axis times itself, so any of its columns is along the axis.
    squares = rotation + np.eye(3)
    axis = squares[:, int(np.argmax(np.diag(squares)))]
    return axis * (math.pi / float(np.linalg.norm(axis)))


def reach_down(position: np.ndarray, yaw: float) -> np.ndarray | None:
    """Closed-form arm joints float64 [7] rad with the gripper pointing straight down, or None if out of reach.

    position: [3] m of the finger tips in base_link. yaw: rad, direction in the horizontal plane of the line along which
    the fingers open, from base_link's x axis; a finger line has no sign, so the nearest half turn of joint 7 is taken.
    Joints 3 and 5 stay zero, so the arm moves in one vertical plane.
    """
    x, y, z = (float(v) for v in position)
    pan = math.atan2(y, x)
    radius = math.hypot(x, y)
    height = z + WRIST_TO_TIP - SHOULDER_HEIGHT
    distance = math.hypot(radius, height)
    if distance >= UPPER_ARM + FOREARM or distance < 1e-6:
        return None
    cosine = (distance**2 - UPPER_ARM**2 - FOREARM**2) / (2.0 * UPPER_ARM * FOREARM)
    if not -1.0 <= cosine <= 1.0:
        return None
    # Lean from the vertical, positive forward. Joints 2, 4 and 6 turn about -y, so leaning forward is negative.
    elbow = math.acos(cosine)
    shoulder = math.atan2(radius, height) - math.atan2(FOREARM * math.sin(elbow), UPPER_ARM + FOREARM * math.cos(elbow))
    wrist = math.pi - shoulder - elbow
    roll = (pan - yaw + math.pi / 2) % math.pi - math.pi / 2
    return np.array([pan, -shoulder, 0.0, -elbow, 0.0, -wrist, roll])
