"""Joint targets to the arm's and the gripper's controllers."""

from __future__ import annotations

import numpy as np
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory

from crane_x7_vla.nodes.gripper import GripperAction
from crane_x7_vla.nodes.messages import command_qos, trajectory_message
from crane_x7_vla.protocol import ARM_TOPIC, GRIPPER_TOPIC
from crane_x7_vla.robot import RobotSpec


class CommandPublisher:
    """Publishes one target of all joints as the two trajectories that the controllers expect."""

    def __init__(
        self, node: Node, robot: RobotSpec, *, gripper_topic: bool = True, gripper_action: GripperAction | None = None
    ) -> None:
        """gripper_topic, gripper_action: which of them the gripper is driven by."""
        self._arm = list(robot.arm_indices)
        self._gripper_index = robot.gripper_index
        self._arm_names = [robot.joint_names[i] for i in robot.arm_indices]
        self._gripper_names = [robot.joint_names[robot.gripper_index]]
        self._arm_publisher = node.create_publisher(JointTrajectory, ARM_TOPIC, command_qos())
        self._gripper_publisher = None
        if gripper_topic:
            self._gripper_publisher = node.create_publisher(JointTrajectory, GRIPPER_TOPIC, command_qos())
        self._gripper_action = gripper_action

    def publish(self, target: np.ndarray, *, stamp: int, duration: int) -> None:
        """target: float32 [S] rad, to be reached ``duration`` ns after ``stamp`` ns, which may be AT_ONCE."""
        self._arm_publisher.publish(trajectory_message(self._arm_names, stamp, [duration], target[self._arm][None]))
        if self._gripper_publisher is not None:
            self._gripper_publisher.publish(
                trajectory_message(self._gripper_names, stamp, [duration], target[[self._gripper_index]][None])
            )
        if self._gripper_action is not None:
            self._gripper_action.send(float(target[self._gripper_index]))
