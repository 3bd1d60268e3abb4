"""How the gripper is driven: by a trajectory topic, or by the GripperCommand action of RT's controllers.

The action is there only where control_msgs is installed; the simulated arm and a JointTrajectoryController take the
topic.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node

from crane_x7_vla.errors import ConfigError
from crane_x7_vla.protocol import GRIPPER_ACTION

# A goal replaces the one before and makes the controller start anew, so that only real changes are sent, rad.
SMALLEST_CHANGE = 0.01
# A controller that rejects a goal, as one does that is not active, is asked again after this time, s.
RETRY_S = 2.0

INTERFACES = ("auto", "trajectory", "action")


def choose_interface(wanted: str, *, lockstep: bool) -> tuple[str, ...]:
    """``trajectory``, ``action`` or both, for the parameter ``gripper_interface``.

    auto is both where control_msgs is installed: whichever controller runs hears one of them. In lockstep it is the
    trajectory, because a simulator needs a stamped command.
    Raises ConfigError for another word, and for an action that cannot be had.
    """
    installed = importlib.util.find_spec("control_msgs") is not None
    if wanted not in INTERFACES:
        raise ConfigError(f"gripper_interface is '{wanted}', expected one of {', '.join(INTERFACES)}")
    if wanted == "action" and lockstep:
        raise ConfigError("gripper_interface is 'action', but lockstep needs stamped commands; use trajectory")
    if wanted == "action" and not installed:
        raise ConfigError(
            "gripper_interface is 'action', which needs the package control_msgs; install it with: "
            "apt install ros-$ROS_DISTRO-control-msgs, or use trajectory"
        )
    if wanted == "auto":
        return ("trajectory", "action") if installed and not lockstep else ("trajectory",)
    return (wanted,)


class GripperAction:
    """Sends position goals to the gripper's controller; never waits for it."""

    def __init__(self, node: Node, *, max_effort: float, clock: Callable[[], float] = time.monotonic) -> None:
        """max_effort: N·m, 0 leaves it to the controller. clock: s, paces what is sent again."""
        action: Any = importlib.import_module("control_msgs.action").GripperCommand
        self._goal_type = action.Goal
        self._client: Any = ActionClient(node, action, GRIPPER_ACTION)
        self._node = node
        self._max_effort = max_effort
        self._clock = clock
        self._sent: float | None = None
        self._rejected_at: float | None = None

    def send(self, position: float) -> None:
        """Command ``position`` rad if it differs from the last one sent, or that one was rejected a while ago."""
        if not self._client.server_is_ready():
            self._sent = self._rejected_at = None
            return
        if self._rejected_at is not None:
            if self._clock() - self._rejected_at < RETRY_S:
                return
            self._sent = self._rejected_at = None
        if self._sent is None or abs(position - self._sent) >= SMALLEST_CHANGE:
            goal = self._goal_type()
            goal.command.position = float(position)
            goal.command.max_effort = self._max_effort
            self._client.send_goal_async(goal).add_done_callback(self._on_answer)
            self._sent = position

    def _on_answer(self, future: Any) -> None:
        if not future.result().accepted:
            self._rejected_at = self._clock()
            self._node.get_logger().warning(
                f"the gripper's controller rejected a goal, sending it again in {RETRY_S:g} s; is the controller "
                "active? See: ros2 control list_controllers"
            )
