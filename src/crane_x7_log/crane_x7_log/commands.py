"""The joint target in force, from the trajectories sent to the arm's and the gripper's controllers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crane_x7_log.sampling import ARM_COMMAND, GRIPPER_COMMAND
from crane_x7_vla.protocol import NANOSECONDS, RESET_GAP
from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.trajectory import Setpoint


class CommandTracker:
    """Follows both controllers. A part that was never commanded is taken to hold its measured position."""

    def __init__(self, robot: RobotSpec) -> None:
        self._robot = robot
        self._indices: dict[str, list[int]] = {
            ARM_COMMAND: list(robot.arm_indices),
            GRIPPER_COMMAND: [robot.gripper_index],
        }
        self._origin_ns = 0
        self._setpoints: dict[str, Setpoint] = {}
        self._starts_ns: dict[str, int] = {}

    @property
    def commanded(self) -> bool:
        """Whether any controller was commanded."""
        return bool(self._starts_ns)

    @property
    def arm_commanded(self) -> bool:
        return ARM_COMMAND in self._starts_ns

    def joint_names(self, part: str) -> list[str]:
        """Joints of ARM_COMMAND or GRIPPER_COMMAND, in the order its positions are given in."""
        return [self._robot.joint_names[index] for index in self._indices[part]]

    def follow(
        self,
        part: str,
        start_ns: int,
        times_ns: NDArray[np.int64],
        positions: NDArray[np.float64],
        *,
        measured: NDArray[np.float32] | None,
    ) -> None:
        """A trajectory came: positions [P, J] rad, ``times_ns`` [P] after ``start_ns``.

        measured: float32 [S] rad, where the first trajectory of a part starts from; None for its own first point.
        Raises ValueError as ``Setpoint.replace``.
        """
        if not self._setpoints:
            self._origin_ns = start_ns  # small numbers keep float seconds exact to well below a nanosecond
        if part not in self._setpoints:
            begin = positions[0] if measured is None else measured[self._indices[part]]
            self._setpoints[part] = Setpoint(begin, self._seconds(start_ns))
        self._setpoints[part].replace(self._seconds(start_ns), times_ns / NANOSECONDS, positions)
        self._starts_ns[part] = start_ns

    def hold(self, measured: NDArray[np.float32], stamp_ns: int) -> None:
        """Parts without a command hold ``measured`` float32 [S] rad, and did before ``stamp_ns``."""
        for part, indices in self._indices.items():
            if part not in self._starts_ns:
                self._setpoints[part] = Setpoint(measured[indices], self._seconds(stamp_ns))

    def forget_before(self, stamp_ns: int) -> None:
        """The clock jumped to ``stamp_ns``: controllers began anew and hold, but for commands of the new time."""
        for part, start_ns in list(self._starts_ns.items()):
            if not stamp_ns <= start_ns <= stamp_ns + RESET_GAP:
                del self._starts_ns[part], self._setpoints[part]

    def at(self, stamp_ns: int) -> NDArray[np.float32]:
        """float32 [S] rad, the target in force. Needs a command or ``hold`` for both parts before."""
        target = np.empty(self._robot.size, np.float32)
        for part, indices in self._indices.items():
            target[indices] = self._setpoints[part].at(self._seconds(stamp_ns))
        return target

    def _seconds(self, stamp_ns: int) -> float:
        return (stamp_ns - self._origin_ns) / NANOSECONDS
