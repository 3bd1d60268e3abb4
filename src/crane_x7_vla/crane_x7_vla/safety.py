"""The last look at a chunk before it moves an arm: clamp what is a little out, refuse what is wrong, say why.

Pure functions on values, used by the inference node, by teleoperation and by tests. Refusing means holding the target
in force; nothing here ever invents a motion. RT's driver neither clamps nor limits rates (crane_x7_hardware.cpp), and a
trajectory controller follows whatever it is sent, so this is the only guard between a model and the servos.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crane_x7_vla import kinematics
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.types import ActionChunk, Observation

# Beyond a limit by less than this is clamped without a word: an encoder tick of the servos is 0.0015 rad.
_NOISE = 1e-3
# How far a pose may be outside the workspace after clamping, m.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyLimits:
    """What a chunk is held against.

    max_age: s, observations older than this are not acted upon (nor ones as far in the future).
    velocity_scale: allowed share of ``RobotSpec.max_velocity``, (0, 1]. At 1 the gripper may be told to snap shut, as
    by a GripperCommand goal; its servo keeps its own speed.
    max_jump: rad, how far an arm joint's first target may be from the target in force.
    workspace_lower, workspace_upper: m, the box in base_link in which the point between the finger tips must stay; the
    lower z is the table, which the wrist and each finger tip must stay above, too. The fingers' width and what is
    behind the wrist count as nothing; keep a margin for them.
    """

    max_age: float = 0.5
    velocity_scale: float = 1.0
    max_jump: float = 0.6
    workspace_lower: tuple[float, float, float] = (-0.65, -0.65, 0.0)
    workspace_upper: tuple[float, float, float] = (0.65, 0.65, 0.9)

    def __post_init__(self) -> None:
        if not self.max_age > 0:
            raise ConfigError(f"safety max_age must be positive, got {self.max_age}")
        if not 0 < self.velocity_scale <= 1:
            raise ConfigError(f"safety velocity_scale must be in (0, 1], got {self.velocity_scale}")
        if not self.max_jump > 0:
            raise ConfigError(f"safety max_jump must be positive, got {self.max_jump}")
        for name, box in (("lower", self.workspace_lower), ("upper", self.workspace_upper)):
            if len(box) != 3:
                raise ConfigError(f"safety workspace_{name} must be x, y, z, got {len(box)} numbers")
        if not all(low < high for low, high in zip(self.workspace_lower, self.workspace_upper, strict=True)):
            raise ConfigError(
                f"safety workspace_lower {self.workspace_lower} must be below workspace_upper {self.workspace_upper}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """chunk: what may be executed, or None: hold the target in force.

    reasons: what was clamped, or why the chunk was refused; empty for a chunk that passed as it was.
    """

    chunk: ActionChunk | None
    reasons: tuple[str, ...] = ()


def stale(stamp: float, now: float, max_age: float) -> str | None:
    """Why something stamped ``stamp`` is not fit to act upon at ``now`` (s, one clock), or None if it is."""
    age = now - stamp
    if -max_age <= age <= max_age:
        return None
    if age < 0:
        return f"{-age:.2f} s in the future; the clocks differ (is use_sim_time the same everywhere?)"
    return f"{age:.2f} s old, more than {max_age:g} s"


def check(
    chunk: ActionChunk,
    observation: Observation,
    *,
    now: float,
    robot: RobotSpec,
    limits: SafetyLimits,
    current: np.ndarray,
) -> Verdict:
    """Whether and how ``chunk`` may be executed from ``now`` on.

    chunk: without the rows that are already past. observation: what it answers. now: s, the clock of the stamps.
    current: float [S] rad, the target in force.
    The result keeps joint limits, and speed from ``current`` on; it is inside the workspace by 1 mm or at least no
    farther outside than ``current``. Raises nothing: what cannot be judged is refused.
    """
    refusal = _refusal(chunk, observation, now=now, robot=robot, limits=limits, current=current)
    if refusal is not None:
        return Verdict(chunk=None, reasons=(refusal,))
    reasons: list[str] = []
    rows = _within_joint_limits(chunk.actions, robot, reasons)
    rows = _within_reach(rows, chunk, now=now, robot=robot, limits=limits, current=current, reasons=reasons)
    return Verdict(chunk=ActionChunk(actions=rows, dt=chunk.dt, stamp=chunk.stamp), reasons=tuple(reasons))


def _refusal(
    chunk: ActionChunk,
    observation: Observation,
    *,
    now: float,
    robot: RobotSpec,
    limits: SafetyLimits,
    current: np.ndarray,
) -> str | None:
    if robot.name != kinematics.ROBOT:
        return f"whether {robot.name} stays in its workspace cannot be judged: kinematics.py is of {kinematics.ROBOT}"
    sizes = {
        "the chunk": chunk.actions.shape[1],
        "the state": observation.state.size,
        "the target in force": current.size,
    }
    for what, size in sizes.items():
        if size != robot.size:
            return f"{what} has {size} joints, {robot.name} has {robot.size}"
    age = stale(observation.stamp, now, limits.max_age)
    if age is not None:
        return f"the observation is {age}"
    for what, values in (
        ("the chunk", chunk.actions),
        ("the state", observation.state),
        ("the target in force", current),
    ):
        wrong = (~np.isfinite(values.reshape(-1, robot.size))).sum(axis=0) > 0
        if wrong.any():
            return f"{what} is not finite for {_names(robot, wrong)}"
    jump = np.abs(chunk.actions[0] - current)
    jump[robot.gripper_index] = 0.0
    if jump.max() > limits.max_jump:
        return (
            f"the first target is {jump.max():.2f} rad from the target in force for "
            f"{_names(robot, jump > limits.max_jump)}, more than {limits.max_jump:g} rad"
        )
    return None


def _within_joint_limits(actions: np.ndarray, robot: RobotSpec, reasons: list[str]) -> np.ndarray:
    clamped = robot.clamp(actions)
    beyond = np.abs(actions - clamped).max(axis=0)
    if beyond.max() > _NOISE:
        reasons.append(f"clamped to the limits of {_names(robot, beyond > _NOISE)} (by up to {beyond.max():.3f} rad)")
    return clamped


def _within_reach(
    rows: np.ndarray,
    chunk: ActionChunk,
    *,
    now: float,
    robot: RobotSpec,
    limits: SafetyLimits,
    current: np.ndarray,
    reasons: list[str],
) -> np.ndarray:
    """Rows float32 [T, A] inside the workspace, each reachable from the one before at the allowed speed."""
    arm = np.array(robot.arm_indices)
    speed = limits.velocity_scale * np.array(robot.max_velocity)
    if limits.velocity_scale == 1.0:
        speed[robot.gripper_index] = np.inf
    low, high = np.array(limits.workspace_lower), np.array(limits.workspace_upper)
    previous = current.astype(np.float64)
    outside_before = _outside(previous, robot, low, high)
    result = np.empty_like(rows)
    slowed = np.zeros(robot.size, dtype=bool)
    pulled_back = 0.0
    for number, row in enumerate(rows.astype(np.float64)):
        # The first row must be reached in what is left of its period.
        span = min(max(chunk.due(number) - now, 0.0), chunk.dt)
        reach = speed * span if span > 0 else np.zeros(robot.size)
        wanted = row
        outside = _outside(row, robot, low, high)
        if outside > _TOLERANCE:
            pulled_back = max(pulled_back, outside)
            wanted = np.clip(_toward_workspace(row, robot, low, high), robot.lower, robot.upper)
        slowed |= np.abs(wanted - previous) > reach + _NOISE
        limited = _limit_speed(wanted, previous, reach, arm)
        if not np.array_equal(limited, row):
            outside = _outside(limited, robot, low, high)
        if outside > max(_TOLERANCE, outside_before):
            pulled_back = max(pulled_back, outside)
            limited[arm] = previous[arm]
            outside = _outside(limited, robot, low, high)
            if outside > max(_TOLERANCE, outside_before):  # fingers that open reach lower, too
                limited, outside = previous.copy(), outside_before
        result[number] = limited
        previous, outside_before = limited, outside
    if pulled_back > 0:
        reasons.append(f"clamped to the workspace (fingers or wrist up to {1000 * pulled_back:.0f} mm outside)")
    if slowed.any():
        reasons.append(f"slowed down {_names(robot, slowed)} to {limits.velocity_scale:g} of the maximum speed")
    return robot.clamp(result)


def _limit_speed(wanted: np.ndarray, previous: np.ndarray, reach: np.ndarray, arm: np.ndarray) -> np.ndarray:
    """As far towards ``wanted`` as ``reach`` allows: the arm along its straight line, the gripper by itself.

    What is within reach is returned bit for bit.
    """
    move = wanted - previous
    limited = np.where(np.abs(move) <= reach, wanted, previous + np.clip(move, -reach, reach))
    asked = np.abs(move[arm])
    if np.any(asked > reach[arm]):
        moving = asked > 0
        limited[arm] = previous[arm] + (reach[arm][moving] / asked[moving]).min() * move[arm]
    else:
        limited[arm] = wanted[arm]
    return limited


def _outside(positions: np.ndarray, robot: RobotSpec, low: np.ndarray, high: np.ndarray) -> float:
    """How far ``positions`` float [S] rad are outside the box, m; 0 inside."""
    return float(np.linalg.norm(_way_back(positions, robot, low, high)))


def _way_back(positions: np.ndarray, robot: RobotSpec, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """float64 [3] m: the way that brings the middle of the finger tips into the box, and all the rest above its floor.

    positions: float [S] rad.
    """
    arm = positions[list(robot.arm_indices)]
    tip = kinematics.tip(arm)
    way = np.clip(tip, low, high) - tip
    tips = kinematics.finger_tips(arm, float(positions[robot.gripper_index]))
    way[2] = max(way[2], low[2] - min(kinematics.wrist(arm)[2], *tips[:, 2]))
    return way


def _toward_workspace(positions: np.ndarray, robot: RobotSpec, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The positions nearby that are inside the box, float64 [S] rad: damped least squares on the arm, a few steps."""
    positions = positions.copy()
    indices = list(robot.arm_indices)
    for _ in range(10):
        way = _way_back(positions, robot, low, high)
        if np.linalg.norm(way) < _TOLERANCE / 10:
            break
        arm = positions[indices]
        lever = kinematics.TIP_OFFSET * kinematics.forward(arm)[:3, 2]
        slope = kinematics.jacobian(arm)
        tip_slope = slope[:3] + np.cross(slope[3:], lever, axisa=0, axisb=0, axisc=0)
        positions[indices] += tip_slope.T @ np.linalg.solve(tip_slope @ tip_slope.T + 1e-4 * np.eye(3), way)
    return positions


def _names(robot: RobotSpec, which: np.ndarray) -> str:
    return ", ".join(name for name, chosen in zip(robot.joint_names, which.tolist(), strict=True) if chosen)
