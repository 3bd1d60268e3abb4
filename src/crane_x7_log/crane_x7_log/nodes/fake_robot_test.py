"""A robot for the tests of the recorder node, run as a process of its own: rclpy and pytest's forks do not mix.

    python -m crane_x7_log.nodes.fake_robot_test lockstep|realtime|interrupted|second_arm

Speaks the protocol of the recorder's documentation, nothing else, and prints one line of JSON about what it did.
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from collections.abc import Callable

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from crane_x7_vla.nodes.messages import (
    command_qos,
    latched_qos,
    publisher_qos,
    rgb_to_image,
    to_stamp,
    trajectory_message,
)
from crane_x7_vla.protocol import ARM_TOPIC, GRIPPER_TOPIC, JOINT_STATES, camera_topic
from crane_x7_vla.robot import CRANE_X7

MS = 1_000_000
START_NS = 1_000 * MS
INSTRUCTION = "pick up the red cube"
N_LOCKSTEP = 30
# At most this many instants are on their way: the recorder's queues hold 20.
_BURST = 10
_LIMIT_S = 120.0


def state_at(stamp_ns: int) -> np.ndarray:
    """What the joints measure, float32 [8] rad."""
    return (np.arange(8) / 20 - 0.2 + 0.1 * np.sin(stamp_ns / 1e9)).astype(np.float32)


def target_at(stamp_ns: int) -> np.ndarray:
    """What is commanded for the end of the step, float32 [8] rad."""
    return state_at(stamp_ns) + np.float32(0.03)


def image_at(camera: str, stamp_ns: int) -> np.ndarray:
    """A pure red square for primary and a blue one for wrist, on a ground that says when it was."""
    image = np.full((48, 64, 3), stamp_ns // (10 * MS) % 200, np.uint8)
    image[8:24, 8:24] = (255, 0, 0) if camera == "primary" else (0, 0, 255)
    return image


class FakeRobot(Node):
    """Publishes what the functions above say, and calls the recorder's services."""

    def __init__(self) -> None:
        super().__init__("fake_robot")
        self.status: dict[str, object] = {}
        self._played_ns = START_NS
        self._joints = self.create_publisher(JointState, JOINT_STATES, publisher_qos())
        self._images = {
            "primary": self.create_publisher(Image, camera_topic("primary"), publisher_qos()),
            "wrist": self.create_publisher(Image, camera_topic("wrist"), publisher_qos()),
        }
        self._commands = {
            "arm": self.create_publisher(JointTrajectory, ARM_TOPIC, command_qos()),
            "gripper": self.create_publisher(JointTrajectory, GRIPPER_TOPIC, command_qos()),
        }
        self.create_subscription(String, "recorder/status", self._on_status, latched_qos())
        self._triggers = {
            name: self.create_client(Trigger, f"recorder/{name}") for name in ("start", "stop", "discard")
        }
        self._mark = self.create_client(SetBool, "recorder/mark_success")
        self._recorder_parameters = AsyncParameterClient(self, "recorder")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def wait(self, done: Callable[[], bool], what: str) -> None:
        limit = time.monotonic() + _LIMIT_S
        while not done():
            self._executor.spin_once(timeout_sec=0.05)
            if time.monotonic() > limit:
                raise TimeoutError(f"{what}; the recorder says {self.status}")

    def wait_for_recorder(self) -> None:
        publishers = [self._joints, *self._images.values(), *self._commands.values()]
        self.wait(lambda: all(p.get_subscription_count() == 1 for p in publishers) and bool(self.status), "no recorder")
        for client in (*self._triggers.values(), self._mark):
            self.wait(client.service_is_ready, f"no service {client.srv_name}")
        self.wait(self._recorder_parameters.services_are_ready, "no parameter services")

    def set_parameters(self, **values: str | int) -> None:
        future = self._recorder_parameters.set_parameters(
            [Parameter(name, value=value) for name, value in values.items()]
        )
        self.wait(future.done, "set_parameters")

    def call(self, name: str) -> tuple[bool, str]:
        future = self._triggers[name].call_async(Trigger.Request())
        self.wait(future.done, name)
        answer = future.result()
        assert answer is not None
        return answer.success, answer.message

    def mark_success(self, success: bool) -> None:
        future = self._mark.call_async(SetBool.Request(data=success))
        self.wait(future.done, "mark_success")

    def publish_state(self, stamp_ns: int) -> None:
        """Joints in another order than the robot's, with one of another device among them."""
        order = [3, 7, 0, 1, 6, 5, 4, 2]
        state = state_at(stamp_ns)
        message = JointState(name=["conveyor_joint", *(CRANE_X7.joint_names[i] for i in order)])
        message.header.stamp = to_stamp(stamp_ns)
        message.position = [9.0, *(float(state[i]) for i in order)]
        self._joints.publish(message)

    def publish_image(self, camera: str, stamp_ns: int) -> None:
        """primary as rgb8, wrist as bgr8."""
        rgb = image_at(camera, stamp_ns)
        message = rgb_to_image(rgb, stamp_ns, camera)
        if camera == "wrist":
            message.encoding = "bgr8"
            message.data = array("B", rgb[..., ::-1].tobytes())
        self._images[camera].publish(message)

    def publish_commands(self, stamp_ns: int, times_ns: list[int], targets: np.ndarray) -> None:
        for name, joints in (("arm", slice(0, 7)), ("gripper", slice(7, 8))):
            names = CRANE_X7.joint_names[joints]
            self._commands[name].publish(
                trajectory_message(names, stamp_ns, times_ns, targets[:, joints].astype(np.float64))
            )

    def play(self, done: Callable[[], bool], what: str) -> None:
        """Joint states at 100 Hz, images at 25 Hz and commands at 20 Hz of header time, until ``done``."""
        limit = time.monotonic() + _LIMIT_S
        while not done():
            if time.monotonic() > limit:
                raise TimeoutError(f"{what}; the recorder says {self.status}")
            self._played_ns += 10 * MS
            stamp_ns = self._played_ns
            if stamp_ns % (50 * MS) == 0:
                self.publish_commands(stamp_ns, [50 * MS], target_at(stamp_ns)[None])
            self.publish_state(stamp_ns)
            if stamp_ns % (40 * MS) == 0:
                for camera in ("primary", "wrist"):
                    self.publish_image(camera, stamp_ns)
            self._executor.spin_once(timeout_sec=0.01)

    def play_steps(self, n: int) -> None:
        """Until the present episode has ``n`` steps."""
        self.play(lambda: isinstance(self.status["steps"], int) and self.status["steps"] >= n, f"no {n} steps")

    def saved(self) -> dict[str, object]:
        """Waits for the recorder to be idle; what it says of the last episode."""
        self.wait(lambda: self.status["state"] == "idle" and self.status["last"] is not None, "never idle")
        last = self.status["last"]
        assert isinstance(last, dict)
        return last

    def _on_status(self, message: String) -> None:
        self.status = json.loads(message.data)


def lockstep(robot: FakeRobot) -> dict[str, object]:
    """An episode of N_LOCKSTEP steps, each instant published once."""
    robot.set_parameters(instruction=INSTRUCTION, seed=11)
    # The simulator shows its first instant before the recorder is started, and waits.
    robot.publish_state(START_NS)
    for camera in ("primary", "wrist"):
        robot.publish_image(camera, START_NS)
    robot.wait(lambda: robot.status["waiting_for"] == [], "the recorder did not see the first instant")
    ok, text = robot.call("start")
    assert ok, text
    robot.set_parameters(instruction="something else")
    for k in range(N_LOCKSTEP + 1):
        stamp_ns = START_NS + 100 * MS * k
        if k > 0:
            robot.publish_state(stamp_ns)
            for camera in ("wrist", "primary"):
                robot.publish_image(camera, stamp_ns)
        if k < N_LOCKSTEP:
            targets = np.stack([(state_at(stamp_ns) + target_at(stamp_ns)) / 2, target_at(stamp_ns)])
            robot.publish_commands(stamp_ns, [50 * MS, 100 * MS], targets)
        if k % _BURST == 0:
            robot.wait(lambda k=k: robot.status["steps"] == k, f"steps before {k} are missing")
    robot.mark_success(True)
    ok, text = robot.call("stop")
    assert ok, text
    return robot.saved()


def realtime(robot: FakeRobot) -> dict[str, object]:
    """One second of a discarded episode, two saved, and an episode that is left in the middle."""
    robot.set_parameters(instruction=INSTRUCTION)
    robot.play(lambda: robot.status["waiting_for"] == [], "not all sources were seen")
    assert robot.call("start")[0]
    robot.play_steps(10)
    assert robot.call("discard")[0]
    return {"discarded": robot.saved(), **interrupted(robot)}


def interrupted(robot: FakeRobot) -> dict[str, object]:
    """Two seconds saved, and an episode that is left in the middle."""
    robot.set_parameters(instruction=INSTRUCTION)
    robot.play(lambda: robot.status["waiting_for"] == [], "not all sources were seen")
    assert robot.call("start")[0]
    robot.play_steps(20)
    assert robot.call("stop")[0]
    robot.wait(lambda: robot.status["saved"] == 1, "not saved")
    saved = robot.saved()
    ok, _ = robot.call("stop")
    assert not ok
    assert robot.call("start")[0]
    robot.play_steps(15)
    return {"saved": saved, "left": robot.status["episode"]}


def second_arm(robot: FakeRobot) -> dict[str, object]:
    """A second publisher of joint states."""
    robot.set_parameters(instruction=INSTRUCTION)
    other = robot.create_publisher(JointState, JOINT_STATES, publisher_qos())
    ok, text = robot.call("start")
    while ok:  # the recorder has not discovered it yet
        robot.call("discard")
        robot.wait(lambda: robot.status["state"] == "idle", "never idle")
        ok, text = robot.call("start")
    robot.destroy_publisher(other)
    return {"refused": text}


def main(scenario: str) -> int:
    """Run one scenario against the recorder of this domain."""
    rclpy.init()
    robot = FakeRobot()
    robot.wait_for_recorder()
    scenarios = {"lockstep": lockstep, "realtime": realtime, "interrupted": interrupted, "second_arm": second_arm}
    result = scenarios[scenario](robot)
    sys.stdout.write(json.dumps(result) + "\n")
    robot.destroy_node()
    rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
