"""The expert among other nodes that command the arm, over real DDS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from crane_x7_vla.errors import ConfigError
from crane_x7_vla.nodes.commands import CommandPublisher
from crane_x7_vla.nodes.domain import environment, take_domain
from crane_x7_vla.nodes.messages import command_qos, joint_state_message, publisher_qos, stamp_ns, to_stamp
from crane_x7_vla.protocol import ARM_TOPIC
from crane_x7_vla.robot import CRANE_X7
from lift.nodes import topics
from lift.nodes.expert_node import ExpertNode

pytestmark = pytest.mark.ros

LIMIT_S = 60.0
SECOND = 1_000_000_000
PERIOD = SECOND // 10


class Stage:
    """The expert in lockstep and a node that plays the simulator and, by ``others``, a second driver."""

    def __init__(self) -> None:
        self.expert = ExpertNode()
        self.node = Node("stage")
        self.others = CommandPublisher(self.node, CRANE_X7)
        self.heard: list[int] = []
        self._joints = self.node.create_publisher(JointState, topics.JOINT_STATES, publisher_qos())
        self._pose = self.node.create_publisher(PoseStamped, topics.OBJECT_POSE, publisher_qos())
        self.node.create_subscription(JointTrajectory, ARM_TOPIC, self._on_command, command_qos())
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.expert)
        self._executor.add_node(self.node)
        self.wait(lambda: all(p.get_subscription_count() == 1 for p in (self._joints, self._pose)))
        self.wait(lambda: self.node.count_publishers(ARM_TOPIC) == self.node.count_subscribers(ARM_TOPIC) == 2)

    def _on_command(self, message: JointTrajectory) -> None:
        self.heard.append(stamp_ns(message.header))

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline
            self._executor.spin_once(timeout_sec=0.05)

    def show(self, stamp: int) -> None:
        home = np.array(CRANE_X7.home)
        pose = PoseStamped()
        pose.header.stamp = to_stamp(stamp)
        pose.pose.position.x, pose.pose.position.z, pose.pose.orientation.w = 0.25, 0.02, 1.0
        self._pose.publish(pose)
        self._joints.publish(joint_state_message(CRANE_X7, stamp, home, np.zeros_like(home)))

    def command(self, stamp: int) -> None:
        """As a policy would."""
        self.others.publish(np.array(CRANE_X7.home, np.float32) + np.float32(0.5), stamp=stamp, duration=PERIOD)

    def press(self, button: str) -> None:
        client = self.node.create_client(Trigger, f"/expert/{button}")
        self.wait(client.service_is_ready)
        self.wait(client.call_async(Trigger.Request()).done)

    def close(self) -> None:
        self._executor.shutdown()
        self.expert.destroy_node()
        self.node.destroy_node()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with take_domain() as domain:
        for name, value in environment(domain.number).items():
            monkeypatch.setenv(name, value)
        rclpy.init(args=["--ros-args", "-p", "lockstep:=true"], domain_id=domain.number)
        stage = Stage()
        yield stage
        stage.close()
        rclpy.shutdown()


def test_in_lockstep_a_second_driver_ends_the_expert_and_its_own_commands_do_not(stage: Stage) -> None:
    for stamp in range(SECOND, 2 * SECOND, PERIOD):
        stage.show(stamp)
        stage.show(stamp)  # what nobody seems to have answered
        stage.wait(lambda stamp=stamp: stage.heard.count(stamp) >= 2)
    assert stage.expert.failure is None
    # A policy is slower than the expert; the simulator has gone on without its answer.
    stage.command(2 * SECOND - 2 * PERIOD)
    stage.wait(lambda: stage.expert.failure is not None)
    assert isinstance(stage.expert.failure, ConfigError)
    assert "start the simulated arm without the expert: up sim, or --profile vla-sim" in str(stage.expert.failure)


def test_in_lockstep_the_arm_can_be_handed_over(stage: Stage) -> None:
    stage.press("stop")
    stage.show(SECOND)
    stage.wait(lambda: stage.expert.lacks() is None)
    stage.command(SECOND)
    stage.wait(lambda: SECOND in stage.heard)
    stage.show(SECOND + PERIOD)
    stage.press("start")
    stage.command(SECOND)
    stage.wait(lambda: SECOND + PERIOD in stage.heard and stage.heard.count(SECOND) == 2)
    assert stage.expert.failure is None
