"""The simulated arm as a ROS node that looks like the real one: same topics, same names, same units.

Lockstep: publishes an instant and waits until an arm and a gripper command stamped with it have come, then advances one
control period; nothing depends on how fast anybody is. Real time: a control period per control period of wall time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock, ClockType
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from crane_x7_vla.errors import ConfigError, DataError
from crane_x7_vla.nodes.messages import (
    command_qos,
    joint_state_message,
    latched_qos,
    publisher_qos,
    rgb_to_image,
    stamp_ns,
    start_ns,
    to_stamp,
    trajectory_points,
)
from crane_x7_vla.nodes.parameters import current, declare, parameter
from crane_x7_vla.nodes.running import SuiteNode, run_node
from crane_x7_vla.protocol import ARM_TOPIC, GRIPPER_TOPIC, NANOSECONDS, RESET_GAP
from crane_x7_vla.trajectory import Setpoint
from crane_x7_vla.types import Observation
from lift import make_env
from lift.interface import CameraView
from lift.nodes import topics

NAME = "sim"
_CLOCK_HZ = 100.0
_BASE_FRAME = "base_link"
_WATCH_S = 0.25
# An instant that nobody has answered is shown again to those who came late.
_REPEAT_S = 1.0
# Between the end of an episode and the next one with auto_reset, so that a recorder can save.
_PAUSE_S = 1.0
# A killed node is forgotten by DDS after 20 s (its lease); another arm that is still there then is real.
_GHOST_S = 25.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of the node."""

    simulator: str = parameter("mujoco", "simulator, a name that lift.make_env knows")
    env_id: str = parameter("PickUp-CRANE-X7", "task")
    lockstep: bool = parameter(False, "advance only when both commands stamped for the instant have come")
    control_hz: float = parameter(10.0, "control periods per second; observations are published at this rate")
    cameras: tuple[str, ...] = parameter(("primary", "wrist"), "cameras to render")
    image_width: int = parameter(128, "image width, pixels")
    image_height: int = parameter(128, "image height, pixels")
    max_steps: int = parameter(80, "control periods after which an episode is truncated")
    seed: int = parameter(0, "seed of the next episode; set it, then call lift/reset")
    auto_reset: bool = parameter(False, "begin the next seed's episode a second after one has ended")
    command_timeout: float = parameter(
        10.0, "lockstep: end with an error when no command follows an episode's first within this, s of wall time"
    )
    publish_clock: bool = parameter(True, "publish /clock; in real time without it stamps are system time")
    disturbance: float = parameter(0.0, "exploration noise on the executed targets, rad; never on what was commanded")
    draw_elsewhere: bool = parameter(False, "render the object at another place than where it is, to unmask blindness")

    def __post_init__(self) -> None:
        for name in ("control_hz", "image_width", "image_height", "max_steps", "command_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"parameter '{name}' must be positive, got {getattr(self, name)}")
        _check_seed(self.seed)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"parameter 'seed' must be 0 or more, got {seed}")


class SimNode(SuiteNode):
    """See the module."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self._settings = settings = declare(self, Settings)
        self._env = make_env(
            settings.simulator,
            settings.env_id,
            num_envs=1,
            control_hz=settings.control_hz,
            cameras=tuple(
                CameraView(name=name, width=settings.image_width, height=settings.image_height)
                for name in settings.cameras
            ),
            max_steps=settings.max_steps,
            disturbance=settings.disturbance,
            draw_elsewhere=settings.draw_elsewhere,
        )
        robot = self._robot = self._env.spec.robot
        self._arm = list(robot.arm_indices)
        self._gripper = [robot.gripper_index]
        self._period = NANOSECONDS / settings.control_hz
        self._wall = Clock(clock_type=ClockType.STEADY_TIME)

        self._joints = self.create_publisher(JointState, topics.JOINT_STATES, publisher_qos())
        self._images = {
            name: self.create_publisher(Image, topics.camera_topic(name), publisher_qos()) for name in settings.cameras
        }
        self._pose = self.create_publisher(PoseStamped, topics.OBJECT_POSE, publisher_qos())
        self._ended = self.create_publisher(String, topics.EPISODE_END, latched_qos())
        self._clock_publisher = (
            self.create_publisher(ClockMessage, topics.CLOCK, 10) if settings.publish_clock else None
        )
        for part, topic in (("arm", ARM_TOPIC), ("gripper", GRIPPER_TOPIC)):
            self.create_subscription(JointTrajectory, topic, partial(self._on_command, part), command_qos())
        self.create_service(Trigger, topics.RESET, lambda _, response: self._on_reset(response, None))
        self.create_service(Trigger, topics.NEXT_SCENE, lambda _, response: self._on_reset(response, self._seed + 1))

        self._origin = 0
        self._shown = 0
        self._steps = 0
        self._seed = settings.seed
        self._over = False
        self._over_at = 0.0
        self._observation: Observation | None = None
        self._commands: dict[str, np.ndarray] = {}
        self._setpoints: dict[str, Setpoint] = {}
        self._answered = False
        self._published_at = time.monotonic()
        self._refused: set[str] = set()
        self._others_since: float | None = None
        self.create_timer(_WATCH_S, self._watch, clock=self._wall)
        if not settings.lockstep:
            self.create_timer(1.0 / settings.control_hz, self._on_period, clock=self._wall)
            if self._clock_publisher is not None:
                self.create_timer(1.0 / _CLOCK_HZ, self._tell_time, clock=self._wall)
        self._begin(settings.seed)
        self.get_logger().info(
            f"{settings.env_id} in {settings.simulator}, {'lockstep' if settings.lockstep else 'real time'} "
            f"at {settings.control_hz:g} Hz, {', '.join(settings.cameras) or 'no cameras'}"
        )

    def destroy_node(self) -> None:
        """Free the renderer, then go."""
        self._env.close()
        super().destroy_node()

    # -- episodes -----------------------------------------------------------------------------------------------------

    @property
    def _stamp(self) -> int:
        """The current instant, ns; whole periods are rounded one by one, so that errors do not add up."""
        return self._origin + round(self._steps * self._period)

    @property
    def _system_time(self) -> bool:
        """Whether stamps are the system's time, as on the real arm."""
        return not self._settings.lockstep and not self._settings.publish_clock

    @property
    def _is_coming(self) -> bool:
        """Whether nobody has seen the episode yet, as its first instant is still to come."""
        return self._shown < self._origin

    def _begin(self, seed: int) -> None:
        """Start the episode of ``seed`` at a later time than any before, and than 0, which means "now" in a stamp.

        Simulated time jumps there at once. The system's does not: its first instant is shown when its time has come.
        """
        origin = self._shown + RESET_GAP
        if self._system_time:
            origin = max(origin, self.get_clock().now().nanoseconds)
        (observation,) = self._env.reset(np.array([seed], dtype=np.int64))
        self._origin, self._steps, self._seed, self._over = origin, 0, seed, False
        self._commands.clear()
        self._answered = False
        target = (observation.state if observation.commanded is None else observation.commanded).astype(np.float64)
        self._setpoints = {
            "arm": Setpoint(target[self._arm], origin / NANOSECONDS),
            "gripper": Setpoint(target[self._gripper], origin / NANOSECONDS),
        }
        self._observation = observation
        if not self._system_time:
            self._show(observation)

    def _advance(self, target: np.ndarray) -> None:
        """One control period towards ``target`` float32 [S] rad."""
        result = self._env.step(target[None])
        self._steps += 1
        self._commands.clear()
        (observation,) = result.observations
        self._show(observation)
        if not self._over and bool(result.terminated[0] or result.truncated[0]):
            self._over = True
            self._over_at = time.monotonic()
            end = {
                "seed": self._seed,
                "success": bool(result.success[0]),
                "terminated": bool(result.terminated[0]),
                "truncated": bool(result.truncated[0]),
                "steps": self._steps,
                "stamp": self._stamp / NANOSECONDS,
                "stamp_ns": self._stamp,
            }
            self._ended.publish(String(data=json.dumps(end)))
            how = "success" if end["success"] else "no success"
            self.get_logger().info(f"episode of seed {self._seed}: {how} after {self._steps} steps")

    def _show(self, observation: Observation) -> None:
        """Publish the instant: time first, then what others compute from, then the images, which take longest."""
        velocity = np.zeros_like(observation.state)
        if self._observation is not None and self._steps > 0:
            velocity = (observation.state - self._observation.state) * np.float32(self._settings.control_hz)
        self._observation = observation
        self._shown = stamp = self._stamp
        if self._clock_publisher is not None:
            self._clock_publisher.publish(ClockMessage(clock=to_stamp(stamp)))
        self._pose.publish(self._object_pose(stamp))
        self._joints.publish(joint_state_message(self._robot, stamp, observation.state, velocity))
        for name, publisher in self._images.items():
            publisher.publish(rgb_to_image(observation.images[name], stamp, topics.camera_frame(name)))
        self._published_at = time.monotonic()

    def _on_reset(self, response: Trigger.Response, seed: int | None) -> Trigger.Response:
        """seed: None for that of the parameter."""
        try:
            chosen: int = current(self, Settings, "seed") if seed is None else seed
            _check_seed(chosen)
            self._begin(chosen)
        except ConfigError as error:
            response.success = False
            response.message = str(error)
            return response
        response.success = True
        response.message = json.dumps({"seed": self._seed, "stamp": self._stamp / NANOSECONDS, "stamp_ns": self._stamp})
        return response

    # -- commands -----------------------------------------------------------------------------------------------------

    def _on_command(self, part: str, message: JointTrajectory) -> None:
        names = [self._robot.joint_names[i] for i in (self._arm if part == "arm" else self._gripper)]
        try:
            times, positions = trajectory_points(message, names)
        except DataError as error:
            if str(error) not in self._refused:
                self._refused.add(str(error))
                self.get_logger().warning(f"{part} trajectory ignored: {error}")
            return
        if self._settings.lockstep:
            self._on_lockstep_command(part, stamp_ns(message.header), times, positions)
            return
        if self._is_coming:
            # Meant for the scene that is no more.
            return
        start = start_ns(message, self._now())
        self._setpoints[part].replace(start / NANOSECONDS, times / NANOSECONDS, positions)

    def _on_lockstep_command(self, part: str, stamp: int, times: np.ndarray, positions: np.ndarray) -> None:
        """A command for another instant than this one answers a question that is no longer asked."""
        if stamp != self._stamp or self._over:
            return
        now = stamp / NANOSECONDS
        self._setpoints[part].replace(now, times / NANOSECONDS, positions)
        self._commands[part] = self._setpoints[part].at(now + self._period / NANOSECONDS)
        self._answered = True
        if len(self._commands) == len(self._setpoints):
            self._advance(self._joined(self._commands["arm"], self._commands["gripper"]))

    def _joined(self, arm: np.ndarray, gripper: np.ndarray) -> np.ndarray:
        target = np.empty(self._robot.size, dtype=np.float32)
        target[self._arm] = arm
        target[self._gripper] = gripper
        return target

    # -- time ---------------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        """The present between two instants, ns of the stamps' clock."""
        if self._system_time:
            return self.get_clock().now().nanoseconds
        since = round((time.monotonic() - self._published_at) * NANOSECONDS)
        return self._stamp + min(since, round(self._period) - 1)

    def _tell_time(self) -> None:
        if self._clock_publisher is not None:
            self._clock_publisher.publish(ClockMessage(clock=to_stamp(self._now())))

    def _on_period(self) -> None:
        """Real time: the period that has just passed is simulated with the commands that came during it."""
        end = self._origin if self._is_coming else self._origin + round((self._steps + 1) * self._period)
        if self._system_time:
            now = self.get_clock().now().nanoseconds
            if now < end - self._period / 2:
                return
            if now > end + self._period:
                # Slower than real time: stamps stay true, the physics lags.
                self._origin += now - end
                end = now
        if self._is_coming and self._observation is not None:
            self._show(self._observation)
            return
        seconds = end / NANOSECONDS
        self._advance(self._joined(self._setpoints["arm"].at(seconds), self._setpoints["gripper"].at(seconds)))

    def _watch(self) -> None:
        """What must not go on unnoticed: a command that does not come, a second arm, a latecomer."""
        waited = time.monotonic() - self._published_at
        settings = self._settings
        if settings.lockstep and not self._over:
            if self._answered and waited > settings.command_timeout:
                missing = " and ".join(part for part in self._setpoints if part not in self._commands)
                self.fail(
                    DataError(
                        f"lockstep: no {missing} command stamped {self._stamp / NANOSECONDS:.9f} s came within "
                        f"{settings.command_timeout:g} s (step {self._steps}); is the node that drives the arm still "
                        "running? A longer wait is set with command_timeout:=…"
                    )
                )
            if not self._answered and waited > _REPEAT_S and self._observation is not None:
                self._show(self._observation)
        if self._over and settings.auto_reset and time.monotonic() - self._over_at > _PAUSE_S:
            self._begin(self._seed + 1)
        self._look_for_others()

    def _look_for_others(self) -> None:
        if self.count_publishers(self._joints.topic_name) < 2:
            self._others_since = None
        elif self._others_since is None:
            self._others_since = time.monotonic()
        elif time.monotonic() - self._others_since > _GHOST_S:
            self.fail(
                ConfigError(
                    f"another node publishes {self._joints.topic_name} in ROS domain {self.context.get_domain_id()}; "
                    "two arms disturb each other. Stop it, or choose another domain with ROS_DOMAIN_ID=…"
                )
            )

    def _object_pose(self, stamp: int) -> PoseStamped:
        """The truth about the object, for the expert and for people; no policy may see it."""
        x, y, z, qw, qx, qy, qz = self._env.task_state[0].tolist()
        message = PoseStamped()
        message.header.stamp = to_stamp(stamp)
        message.header.frame_id = _BASE_FRAME
        message.pose.position.x, message.pose.position.y, message.pose.position.z = x, y, z
        orientation = message.pose.orientation
        orientation.w, orientation.x, orientation.y, orientation.z = qw, qx, qy, qz
        return message


def main(args: Sequence[str] | None = None) -> int:
    """``ros2 run crane_x7_lift sim_node``."""
    return run_node(NAME, SimNode, args)


if __name__ == "__main__":
    sys.exit(main())
