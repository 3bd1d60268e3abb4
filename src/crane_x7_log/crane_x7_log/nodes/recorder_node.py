"""The recorder as a ROS node: topics in, episodes out, started and stopped by services.

    ros2 run crane_x7_log recorder_node --ros-args -p instruction:="pick up the red cube"
    ros2 service call /recorder/start std_srvs/srv/Trigger

Services ``~/start``, ``~/stop`` (and save), ``~/discard`` (std_srvs/Trigger) and ``~/mark_success`` (std_srvs/SetBool)
answer at once; ``~/status`` (std_msgs/String, JSON of ``status.Status``, latched) says when an episode is saved.
The instruction and the seed are those the parameters have when an episode is started.
With ``num_episodes`` it does all that by itself (``unattended``), and ends with 0 when they are recorded.
On SIGINT or SIGTERM an episode that was not stopped is kept as ``.partial``, and the log says how to recover it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TypeVar

from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from crane_x7_log.config import RecorderConfig
from crane_x7_log.nodes.operator import Operator
from crane_x7_log.recorder import Recorder, RefusedError
from crane_x7_log.sampling import ARM_COMMAND, GRIPPER_COMMAND, STATE
from crane_x7_log.status import Status
from crane_x7_log.unattended import UnattendedConfig
from crane_x7_log.writer import EpisodeThread
from crane_x7_vla.errors import USER_ERRORS, ConfigError, DataError
from crane_x7_vla.nodes.messages import (
    AT_ONCE,
    command_qos,
    image_to_rgb,
    joint_state_positions,
    latched_qos,
    sensor_qos,
    stamp_ns,
    trajectory_points,
)
from crane_x7_vla.nodes.parameters import current, declare, parameter
from crane_x7_vla.nodes.running import SuiteNode, run_node
from crane_x7_vla.protocol import ARM_TOPIC, GRIPPER_TOPIC, JOINT_STATES, PRIMARY_CAMERA, camera_topic
from crane_x7_vla.robot import robot_spec

logger = logging.getLogger(__name__)

Response = TypeVar("Response", Trigger.Response, SetBool.Response)

_TICK_S = 0.05
_STATUS_S = 1.0
_HINT_S = 10.0
# What a supervisor grants between SIGINT and SIGKILL is 5 s or more (systemd 90, docker 10, launch 5).
_GRACE_S = 4.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of the node: those of params/recorder.yaml, and the arguments of launch/recorder.launch.py."""

    robot: str = parameter("crane_x7", "name of the robot whose joints are recorded")
    output_dir: str = parameter("data/tfrecord_logs", "folder in which episode_0, episode_1, ... are made")
    instruction: str = parameter("", "the task in words; an episode keeps what this is when it is started")
    seed: int = parameter(-1, "of the scene, noted with an episode when it is started; -1 for none")
    control_hz: float = parameter(10.0, "steps per second")
    lockstep: bool = parameter(False, "record a simulator that waits for the commands of each instant")
    camera_names: tuple[str, ...] = parameter((PRIMARY_CAMERA,), "cameras; each is recorded, and none may be missing")
    camera_topics: tuple[str, ...] = parameter(
        (), "image topic of each camera; empty: camera/color/image_raw for primary, else camera_NAME/color/image_raw"
    )
    joint_states_topic: str = parameter(JOINT_STATES, "sensor_msgs/JointState of the robot that acts")
    arm_command_topic: str = parameter(ARM_TOPIC, "trajectory_msgs/JointTrajectory to the arm's controller")
    gripper_command_topic: str = parameter(GRIPPER_TOPIC, "trajectory_msgs/JointTrajectory to the gripper's controller")
    commanded: str = parameter(
        "auto",
        "whether action/commanded is recorded: auto (if a controller was commanded by the first steps), required (wait "
        "for a command to the arm) or off (kinaesthetic teaching)",
    )
    tolerance_s: float = parameter(0.05, "messages further from their grid point count as missed, s")
    camera_max_age_s: float = parameter(0.5, "a camera without an image that near ends the episode, s")
    joint_max_age_s: float = parameter(0.2, "joint states that are not that near end the episode, s")
    frozen_camera_s: float = parameter(
        2.0, "a camera showing one picture for so long while the arm moves ends the episode, s; 0 for no check"
    )
    timeout_s: float = parameter(10.0, "an episode without a new step for so long ends, s")
    jpeg_quality: int = parameter(95, "of the recorded images, 1 to 100")
    min_free_mb: int = parameter(64, "recording stops when less is free on the disk, MB")
    num_episodes: int = parameter(0, "record so many episodes without being asked, then end; 0: start each by ~/start")
    episode_seconds: float = parameter(20.0, "with num_episodes: the longest episode, s")
    reset_seconds: float = parameter(
        10.0, "with num_episodes: pause between two episodes, to put everything back; none in simulation, s"
    )

    def topics(self) -> dict[str, str]:
        """Topic of each source. Raises ConfigError when names and topics of the cameras do not go together."""
        names = self.camera_names
        given = tuple(topic for topic in self.camera_topics if topic)  # launch cannot say an empty list, but ['']
        if given and len(given) != len(names):
            raise ConfigError(
                f"camera_names has {len(names)} entries and camera_topics {len(given)}; give one topic for each "
                "camera, or none for the usual ones"
            )
        usual = tuple(camera_topic(name) for name in names)
        return {
            STATE: self.joint_states_topic,
            ARM_COMMAND: self.arm_command_topic,
            GRIPPER_COMMAND: self.gripper_command_topic,
            **dict(zip(names, given or usual, strict=True)),
        }


class RecorderNode(SuiteNode):
    """Converts messages, hands them to the ``Recorder`` and publishes its status."""

    def __init__(self) -> None:
        super().__init__("recorder")
        settings = declare(self, Settings)
        self._robot = robot_spec(settings.robot)
        topics = {source: self.resolve_topic_name(topic) for source, topic in settings.topics().items()}
        config = RecorderConfig(
            robot=self._robot,
            cameras=settings.camera_names,
            topics=topics,
            hz=settings.control_hz,
            lockstep=settings.lockstep,
            commanded=settings.commanded,
            tolerance_s=settings.tolerance_s,
            camera_max_age_s=settings.camera_max_age_s,
            joint_max_age_s=settings.joint_max_age_s,
            frozen_camera_s=settings.frozen_camera_s,
            timeout_s=settings.timeout_s,
            jpeg_quality=settings.jpeg_quality,
        )
        writer = EpisodeThread(Path(settings.output_dir).expanduser(), min_free_bytes=settings.min_free_mb * 1_000_000)
        self._recorder = Recorder(config, writer, count_publishers=lambda source: self.count_publishers(topics[source]))
        self._joints = {
            ARM_COMMAND: [self._robot.joint_names[index] for index in self._robot.arm_indices],
            GRIPPER_COMMAND: [self._robot.joint_names[self._robot.gripper_index]],
        }
        self._published: Status | None = None
        self._event: tuple[object, ...] = ()
        self._published_at = 0.0
        self._hinted_at = time.monotonic()
        self._last_problem: dict[str, str] = {}

        qos = sensor_qos(settings.lockstep)
        self.create_subscription(JointState, topics[STATE], self._on_joint_state, qos)
        for camera in config.cameras:
            self.create_subscription(Image, topics[camera], partial(self._on_image, camera), qos)
        for part in self._joints:
            self.create_subscription(JointTrajectory, topics[part], partial(self._on_command, part), command_qos())
        self._operator = self._unattended(settings)
        self._status = self.create_publisher(String, "~/status", latched_qos())
        self.create_service(Trigger, "~/start", lambda _, response: self._answer(response, self._start))
        self.create_service(Trigger, "~/stop", lambda _, response: self._answer(response, self._stop))
        self.create_service(Trigger, "~/discard", lambda _, response: self._answer(response, self._recorder.discard))
        self.create_service(SetBool, "~/mark_success", self._on_mark_success)
        # A steady clock: the node's own may stand still while a simulator does.
        self.create_timer(_TICK_S, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._publish_status(time.monotonic())
        self.get_logger().info(
            f"recording to {settings.output_dir} at {settings.control_hz:g} Hz: {', '.join(topics.values())}"
        )

    def destroy_node(self) -> None:
        """Leave nothing half: see ``Recorder.shut_down``."""
        self._recorder.shut_down(_GRACE_S)
        super().destroy_node()

    def lacks(self) -> str | None:
        """What keeps an episode from beginning."""
        return "; ".join(self._recorder.status().waiting_for) or None

    def _unattended(self, settings: Settings) -> Operator | None:
        if settings.num_episodes == 0:
            return None
        if not settings.instruction.strip():
            raise ConfigError("num_episodes is set and instruction is empty; set it to what the arm is to do, in words")
        return Operator(
            self,
            UnattendedConfig(
                episodes=settings.num_episodes,
                episode_s=settings.episode_seconds,
                pause_s=settings.reset_seconds,
                lockstep=settings.lockstep,
            ),
            start=self._start,
            stop=self._stop,
            discard=self._recorder.discard,
            mark_success=self._recorder.mark_success,
            has_all_since=self._recorder.has_all_since,
        )

    def _on_joint_state(self, message: JointState) -> None:
        try:
            state = joint_state_positions(message, self._robot)
        except DataError as error:
            self._reject(STATE, error)
            return
        self._recorder.on_joint_state(stamp_ns(message.header), state, time.monotonic())

    def _on_image(self, camera: str, message: Image) -> None:
        try:
            rgb = image_to_rgb(message)
        except DataError as error:
            self._reject(camera, error)
            return
        self._recorder.on_image(camera, stamp_ns(message.header), rgb, time.monotonic())

    def _on_command(self, part: str, message: JointTrajectory) -> None:
        try:
            times, positions = trajectory_points(message, self._joints[part])
        except DataError as error:
            self._reject(part, error)
            return
        start = None if stamp_ns(message.header) == AT_ONCE else stamp_ns(message.header)
        self._recorder.on_command(part, start, times, positions, time.monotonic())

    def _reject(self, source: str, error: DataError) -> None:
        if self._last_problem.get(source) != str(error):  # a source that is wrong is wrong many times a second
            self._last_problem[source] = str(error)
            logger.warning("%s: %s", source, error)
        self._recorder.reject(source, str(error))

    def _start(self, seed: int | None = None, *, afresh: bool = False) -> str:
        """seed: of the scene, None for what the parameter says. afresh: see ``Recorder.start``."""
        known: int = current(self, Settings, "seed") if seed is None else seed
        return self._recorder.start(
            current(self, Settings, "instruction"),
            time.monotonic(),
            started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            seed=None if known < 0 else known,
            afresh=afresh,
        )

    def _stop(self) -> str:
        return self._recorder.stop(time.monotonic())

    def _on_mark_success(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        return self._answer(response, lambda: self._recorder.mark_success(request.data))

    def _answer(self, response: Response, act: Callable[[], str]) -> Response:
        try:
            response.message = act()
            response.success = True
        except (RefusedError, *USER_ERRORS) as error:
            response.message = str(error)
            response.success = False
        logger.log(logging.INFO if response.success else logging.ERROR, "%s", response.message)
        self._publish_status(time.monotonic())
        return response

    def _tick(self) -> None:
        now = time.monotonic()
        self._recorder.tick(now)
        if self._operator is not None:
            self._operator.tick(self._recorder.status(), now)
        self._publish_status(now)

    def _publish_status(self, now: float) -> None:
        """At once when something happens, else once a second at most."""
        status = self._recorder.status()
        event = (status.state, status.episode, status.waiting_for, status.last)
        if event != self._event or (now - self._published_at >= _STATUS_S and status != self._published):
            self._status.publish(String(data=json.dumps(asdict(status))))
            self._event, self._published, self._published_at = event, status, now
        if status.waiting_for and now - self._hinted_at >= _HINT_S:
            self._hinted_at = now
            logger.warning("waiting for %s", "; ".join(status.waiting_for))


def main(args: Sequence[str] | None = None) -> int:
    """Console script ``recorder_node``."""
    return run_node("recorder", RecorderNode, args)


if __name__ == "__main__":
    sys.exit(main())
