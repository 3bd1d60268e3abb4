"""The scripted expert at the controls: sees joints and the true pose of the object, sends what a teleoperator would."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from crane_x7_vla.errors import ConfigError, DataError
from crane_x7_vla.nodes.commands import CommandPublisher
from crane_x7_vla.nodes.messages import command_qos, joint_state_positions, sensor_qos, stamp_ns
from crane_x7_vla.nodes.parameters import declare, parameter
from crane_x7_vla.nodes.running import SuiteNode, run_node
from crane_x7_vla.protocol import ARM_TOPIC, NANOSECONDS, RESET_GAP
from lift.expert import PickUpExpert
from lift.make import find_task
from lift.nodes import topics

NAME = "expert"
_SILENCE_S = 2.0
_TELL_S = 10.0
# Own commands that may still be on their way back to us.
_REMEMBERED = 256


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of the node."""

    env_id: str = parameter("PickUp-CRANE-X7", "task to demonstrate")
    lockstep: bool = parameter(False, "answer every instant of a lockstep simulator")
    control_hz: float = parameter(10.0, "commands per second, that of the simulator")
    autostart: bool = parameter(True, "demonstrate at once; otherwise wait for ~/start")

    def __post_init__(self) -> None:
        if not self.control_hz > 0:
            raise ConfigError(f"parameter 'control_hz' must be positive, got {self.control_hz}")


class ExpertNode(SuiteNode):
    """Answers each instant with one arm and one gripper command; ``~/start`` and ``~/stop`` control it."""

    def __init__(self) -> None:
        super().__init__(NAME)
        settings = declare(self, Settings)
        task = find_task(settings.env_id)
        self._robot = task.robot
        self._expert = PickUpExpert(task)
        self._period = round(NANOSECONDS / settings.control_hz)
        self._commands = CommandPublisher(self, self._robot)
        self._state: tuple[int, np.ndarray] | None = None
        self._pose: tuple[int, np.ndarray] | None = None
        self._last: tuple[int, np.ndarray] | None = None
        self._refused: set[str] = set()
        self._lockstep = settings.lockstep
        self._heard_at = -math.inf
        self._told_at = -math.inf
        self._started_ns = 0
        self._own: deque[tuple[int, list[float]]] = deque(maxlen=_REMEMBERED)
        self._arm = list(self._robot.arm_indices)
        qos = sensor_qos(settings.lockstep)
        self.create_subscription(JointState, topics.JOINT_STATES, self._on_joint_state, qos)
        self.create_subscription(PoseStamped, topics.OBJECT_POSE, self._on_pose, qos)
        if settings.lockstep:
            self.create_subscription(JointTrajectory, ARM_TOPIC, self._on_arm_command, command_qos())
        self.create_service(Trigger, "~/start", self._on_start)
        self.create_service(Trigger, "~/stop", self._on_stop)
        self._running = settings.autostart

    def lacks(self) -> str | None:
        """Joint states and the object's pose, in real time of late."""
        if self._state is None or self._pose is None:
            return f"nothing on {topics.JOINT_STATES if self._state is None else topics.OBJECT_POSE} yet"
        silence = time.monotonic() - self._heard_at
        if not self._lockstep and silence > _SILENCE_S:
            return f"nothing on {topics.JOINT_STATES} for {silence:.0f} s"
        return None

    def _on_joint_state(self, message: JointState) -> None:
        try:
            self._state = (stamp_ns(message.header), joint_state_positions(message, self._robot))
            self._heard_at = time.monotonic()
        except DataError as error:
            if str(error) not in self._refused:
                self._refused.add(str(error))
                self.get_logger().warning(str(error))
            return
        self._answer()

    def _on_pose(self, message: PoseStamped) -> None:
        position, orientation = message.pose.position, message.pose.orientation
        task_state = np.array(
            [position.x, position.y, position.z, orientation.w, orientation.x, orientation.y, orientation.z],
            dtype=np.float32,
        )
        self._pose = (stamp_ns(message.header), task_state)
        self._answer()

    def _answer(self) -> None:
        """Once joint state and pose are of one instant."""
        if not self._running or self._state is None or self._pose is None or self._state[0] != self._pose[0]:
            return
        if self._arm_is_taken():
            self._last = None
            return
        stamp, state = self._state
        last = self._last
        if last is None or stamp < last[0] or stamp - last[0] >= RESET_GAP:
            # A new episode: nothing of ours is in force, the arm holds where it is.
            commanded = state
        elif stamp == last[0]:
            # The simulator shows again what nobody seems to have answered.
            self._command(stamp, last[1])
            return
        else:
            commanded = last[1]
        target = self._expert.act(state, self._pose[1], commanded)
        self._last = (stamp, target)
        self._command(stamp, target)

    def _command(self, stamp: int, target: np.ndarray) -> None:
        self._own.append((stamp, target[self._arm].astype(np.float64).tolist()))
        self._commands.publish(target, stamp=stamp, duration=self._period)

    def _on_arm_command(self, message: JointTrajectory) -> None:
        """In lockstep the first answer to an instant counts, so the expert would do the work of a policy beside it.

        What others command is told by what the expert did not say itself: a node that was killed, or that waits,
        says nothing. Commands up to the instant at which the expert was started are of whoever had the arm before.
        """
        stamp = stamp_ns(message.header)
        if not self._running or stamp <= self._started_ns:
            return
        if any((stamp, list(point.positions)) not in self._own for point in message.points):
            self.fail(
                ConfigError(
                    f"another node commands the arm in lockstep on {ARM_TOPIC}, and the expert would answer in its "
                    "place; start the simulated arm without the expert: up sim, or --profile vla-sim"
                )
            )

    def _arm_is_taken(self) -> bool:
        """In real time a policy or a person who commands the arm has it for themselves.

        That goes by publishers, as a policy that holds or only watches may begin at any time.
        """
        if self._lockstep or self.count_publishers(ARM_TOPIC) < 2:
            return False
        if time.monotonic() - self._told_at > _TELL_S:
            self._told_at = time.monotonic()
            self.get_logger().warning(f"another node publishes {ARM_TOPIC}; the expert leaves the arm to it")
        return True

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self._running:
            self._running = True
            self._started_ns = 0 if self._state is None else self._state[0]
        self._last = None
        response.success = True
        response.message = "demonstrating"
        self._answer()
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._running = False
        response.success = True
        response.message = "stopped"
        return response


def main(args: Sequence[str] | None = None) -> int:
    """``ros2 run crane_x7_lift expert_node``."""
    return run_node(NAME, ExpertNode, args)


if __name__ == "__main__":
    sys.exit(main())
