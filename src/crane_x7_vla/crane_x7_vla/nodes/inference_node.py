"""The node that drives the arm by a model: images and joint states in, joint trajectories out."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.nodes.commands import CommandPublisher
from crane_x7_vla.nodes.driving import LockstepDriver, RealtimeDriver, Worker
from crane_x7_vla.nodes.gripper import GripperAction, choose_interface
from crane_x7_vla.nodes.messages import latched_qos, sensor_qos
from crane_x7_vla.nodes.observing import ObservationBuffer
from crane_x7_vla.nodes.parameters import convert, declare, parameter
from crane_x7_vla.nodes.running import SuiteNode, run_node
from crane_x7_vla.policies.pilot import Pilot
from crane_x7_vla.protocol import JOINT_STATES, NANOSECONDS
from crane_x7_vla.safety import SafetyLimits
from crane_x7_vla.types import Observation

if TYPE_CHECKING:
    from crane_x7_vla.policies.policy import Policy

NAME = "vla_inference"
# The same reason for holding is told again after this time, s.
_REPEAT_S = 5.0
_STATUS_S = 1.0
_WATCH_S = 0.2
# In lockstep an instant without an answer is told of after this time, s.
_SILENCE_S = 2.0

_LIMITS = SafetyLimits()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of the node. Each camera's topic is a further one, ``cameras.<name>.topic``, from the checkpoint."""

    model_path: str = parameter("", "directory of a merged model, or a checkpoint-N")
    instruction: str = parameter("pick up the red cube", "what the arm shall do; may be changed while it runs")
    device: str = parameter("auto", "cpu, cuda, cuda:1, …; auto takes a GPU where there is one")
    graph: bool = parameter(False, "predict on memory taken once, on a GPU as one CUDA graph; the first answer is slow")
    autostart: bool = parameter(True, "drive as soon as everything is seen; otherwise wait for ~/start")
    lockstep: bool = parameter(False, "answer each instant of a simulator with one stamped command")
    control_hz: float = parameter(10.0, "control rate, Hz; must be that of the policy")
    command_hz: float = parameter(50.0, "rate at which interpolated targets are sent in real time, Hz")
    n_action_steps: int = parameter(
        0, "rows executed of each chunk before the policy is asked again; 0: its own number"
    )
    max_age: float = parameter(_LIMITS.max_age, "the arm holds when an image or joint state is older, s")
    velocity_scale: float = parameter(_LIMITS.velocity_scale, "allowed share of the joints' maximum speed, (0, 1]")
    max_jump: float = parameter(
        _LIMITS.max_jump, "a chunk that begins farther from the target in force is refused, rad"
    )
    workspace_lower: tuple[float, ...] = parameter(
        _LIMITS.workspace_lower,
        "x, y, z in base_link that the point between the finger tips must stay above, m; z also the wrist and each tip",
    )
    workspace_upper: tuple[float, ...] = parameter(
        _LIMITS.workspace_upper, "x, y, z in base_link that the point between the finger tips must stay below, m"
    )
    gripper_interface: str = parameter("auto", "trajectory, action (needs control_msgs), or auto: both where possible")
    gripper_effort: float = parameter(0.0, "max_effort of gripper goals, N·m; 0 leaves it to the controller")
    dry_run: bool = parameter(False, "do everything but send commands")

    def __post_init__(self) -> None:
        for name in ("control_hz", "command_hz"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"parameter '{name}' must be positive, got {getattr(self, name)}")
        if self.n_action_steps < 0:
            raise ConfigError(f"parameter 'n_action_steps' must be 0 or more, got {self.n_action_steps}")
        if not self.instruction.strip():
            raise ConfigError("parameter 'instruction' is empty; say what the arm shall do, as in the recordings")
        if self.command_hz < self.control_hz:
            raise ConfigError(f"command_hz is {self.command_hz:g}, expected at least control_hz {self.control_hz:g}")

    def limits(self) -> SafetyLimits:
        """The safety limits they say; raises ConfigError."""
        return SafetyLimits(
            max_age=self.max_age,
            velocity_scale=self.velocity_scale,
            max_jump=self.max_jump,
            workspace_lower=self.workspace_lower,  # pyright: ignore[reportArgumentType] - three numbers, it checks
            workspace_upper=self.workspace_upper,  # pyright: ignore[reportArgumentType]
        )


def load_model(settings: Settings) -> Policy:
    """The policy in ``model_path``; raises ConfigError or CheckpointError."""
    if not settings.model_path:
        raise ConfigError(
            "Failed to load VLA model: parameter 'model_path' is not set; give the merged model's directory with "
            "model_path:=outputs/<experiment>_merged"
        )
    from crane_x7_vla.policies.policy import load_policy

    return load_policy(Path(settings.model_path).expanduser(), device=settings.device, graph=settings.graph)


class InferenceNode(SuiteNode):
    """See the module. Its state is on ``~/status`` (JSON); ``~/start`` and ``~/stop`` control it."""

    def __init__(self, load: Callable[[Settings], Policy] = load_model) -> None:
        """load: makes the policy. Raises ConfigError and CheckpointError."""
        super().__init__(NAME)
        self._settings = settings = declare(self, Settings)
        gripper = choose_interface(settings.gripper_interface, lockstep=settings.lockstep)
        limits = settings.limits()
        policy = load(settings)
        spec = policy.spec
        if abs(spec.dt * settings.control_hz - 1) > 1e-6:
            raise ConfigError(
                f"control_hz is {settings.control_hz:g}, but the policy was trained at {1 / spec.dt:g} Hz; "
                f"set control_hz:={1 / spec.dt:g}"
            )
        self._pilot = Pilot(policy, limits=limits, n_action_steps=settings.n_action_steps or None)
        self._instruction = settings.instruction
        self.add_on_set_parameters_callback(self._on_parameters)
        self._warm_up(policy)

        cameras = [camera.name for camera in spec.cameras]
        self._buffer = ObservationBuffer(spec.robot, cameras, dt=spec.dt, history=spec.history)
        self._commands = CommandPublisher(
            self,
            spec.robot,
            gripper_topic="trajectory" in gripper,
            gripper_action=GripperAction(self, max_effort=settings.gripper_effort) if "action" in gripper else None,
        )
        self._worker = Worker("inference")
        self._lockstep: LockstepDriver | None = None
        self._realtime: RealtimeDriver | None = None
        wall = Clock(clock_type=ClockType.STEADY_TIME)
        if settings.lockstep:
            self._lockstep = LockstepDriver(
                self._pilot, self._buffer, self._publish, lambda: self._instruction, self._worker
            )
            self.create_timer(_WATCH_S, self._on_watch, clock=wall)
        else:
            self._realtime = RealtimeDriver(
                self._pilot,
                self._buffer,
                self._publish,
                lambda: self._instruction,
                self._worker,
                command_hz=settings.command_hz,
                max_age=settings.max_age,
            )
            self.create_timer(1.0 / settings.command_hz, self._on_tick)

        qos = sensor_qos(settings.lockstep)
        self.create_subscription(JointState, JOINT_STATES, partial(self._on_message, JOINT_STATES), qos)
        topics = {}
        for camera in spec.cameras:
            topics[camera.name] = topic = self._camera_topic(camera.name, camera.topic)
            self.create_subscription(Image, topic, partial(self._on_message, camera.name), qos)
        self.create_subscription(String, "~/instruction", self._on_instruction, 1)
        self.create_service(Trigger, "~/start", self._on_start)
        self.create_service(Trigger, "~/stop", self._on_stop)
        self._status = self.create_publisher(String, "~/status", latched_qos())
        self._told: tuple[str, float] | None = None
        self._pending: tuple[int, float] | None = None
        self._running = False
        self._sent = 0
        self.create_timer(_STATUS_S, self._on_status, clock=wall)
        self.get_logger().info(
            f"{spec.backend} policy on {settings.model_path or 'no path'}: {spec.action_horizon} actions at "
            f"{1 / spec.dt:g} Hz, {self._pilot.n_action_steps} executed; cameras "
            + (", ".join(f"{name} on {topic}" for name, topic in topics.items()) or "none")
            + f"; gripper by {' and '.join(gripper)}"
            + ("; dry run, nothing is sent" if settings.dry_run else "")
        )
        if settings.autostart:
            self._start()
        self._on_status()

    def destroy_node(self) -> None:
        """Hold the arm, then go."""
        self._stop()
        self._worker.stop(patience=2.0)
        super().destroy_node()

    def lacks(self) -> str | None:
        """Images and joint states, in real time of late."""
        if self._lockstep is None:
            return self._buffer.problem(self.get_clock().now().nanoseconds, self._settings.max_age)
        if self._buffer.newest() is None:
            return self._buffer.problem(0, math.inf)
        return self._waiting_for()

    def _warm_up(self, policy: Policy) -> None:
        """One inference on grey images, so that the first real one is not the slow one and misfits show at once."""
        spec = policy.spec
        blank = Observation(
            images={c.name: np.full((c.height or 224, c.width or 224, 3), 128, dtype=np.uint8) for c in spec.cameras},
            state=np.array(spec.robot.home, dtype=np.float32),
            commanded=np.array(spec.robot.home, dtype=np.float32),
            instruction=self._instruction,
            stamp=0.0,
        )
        begin = time.monotonic()
        try:
            policy.infer([blank], running=[None])
        except FloatingPointError as error:
            raise CheckpointError(f"Failed to load VLA model: {error}; it is damaged or training diverged") from error
        self._pilot.latency = time.monotonic() - begin

    def _camera_topic(self, name: str, default: str) -> str:
        parameter_name = f"cameras.{name}.topic"
        descriptor = ParameterDescriptor(description=f"images of camera {name}", dynamic_typing=True)
        return convert(parameter_name, self.declare_parameter(parameter_name, default, descriptor).value, str)

    def _on_message(self, source: str, message: Image | JointState) -> None:
        stamp = self._buffer.add(source, message)
        if self._lockstep is not None:
            self._lockstep.on_message(stamp)

    def _on_tick(self) -> None:
        if self._realtime is not None:
            self._realtime.tick(self.get_clock().now().nanoseconds)
        self._look_after()

    def _on_watch(self) -> None:
        """Lockstep: what keeps an instant from being answered is told; the simulator waits and looks at the time."""
        pending = None if self._lockstep is None else self._lockstep.pending
        if pending is None or self._pending is None or self._pending[0] != pending:
            self._pending = None if pending is None else (pending, time.monotonic())
        self._look_after()

    def _waiting_for(self) -> str | None:
        """Lockstep: what an instant has lacked for too long, None when nothing."""
        if self._lockstep is None or self._pending is None or time.monotonic() - self._pending[1] < _SILENCE_S:
            return None
        return self._lockstep.waiting_for()

    def _publish(self, target: np.ndarray, *, stamp: int, duration: int) -> None:
        if not self._settings.dry_run:
            self._commands.publish(target, stamp=stamp, duration=duration)
            self._sent += 1

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._start()
        response.success = True
        response.message = f"driving: {self._instruction}"
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._stop()
        response.success = True
        response.message = "stopped, the arm holds its position"
        return response

    def _start(self) -> None:
        self._running = True
        if self._lockstep is not None:
            self._lockstep.start()
        if self._realtime is not None:
            self._realtime.start()
        self._on_status()

    def _stop(self) -> None:
        self._running = False
        if self._lockstep is not None:
            self._lockstep.stop()
        if self._realtime is not None:
            self._realtime.stop()
        self._on_status()

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        for given in parameters:
            if given.name != "instruction":
                continue
            if given.type_ != Parameter.Type.STRING or not str(given.value).strip():
                return SetParametersResult(successful=False, reason="instruction must be a text that is not empty")
            self._instruction = str(given.value)
        return SetParametersResult(successful=True)

    def _on_instruction(self, message: String) -> None:
        (result,) = self.set_parameters([Parameter("instruction", value=message.data)])
        if not result.successful:
            self.get_logger().warning(f"~/instruction: {result.reason}")

    def _look_after(self) -> None:
        if self._worker.failure is not None:
            self.fail(self._worker.failure)
        self._tell()

    def _tell(self) -> None:
        """Say why the arm holds, or what was clamped, but the same thing only now and then."""
        pilot = self._pilot
        reason = "; ".join(pilot.clamp_reasons)
        if pilot.hold_reason is not None:
            reason = f"{'holding' if pilot.begun else 'waiting'}: {pilot.hold_reason}"
        waiting_for = self._waiting_for()
        if waiting_for is not None:
            reason = f"waiting: {waiting_for}"
        if not self._running or not reason:
            return
        # Numbers in it change from tick to tick.
        kind = "".join(character for character in reason if not character.isdigit())
        now = time.monotonic()
        if self._told is None or self._told[0] != kind or now - self._told[1] > _REPEAT_S:
            self._told = (kind, now)
            self.get_logger().warning(reason)
            self._on_status()

    def _on_status(self) -> None:
        pilot = self._pilot
        newest = self._buffer.newest()
        waiting_for = self._waiting_for()
        if not self._running:
            state = "stopped"
        elif not pilot.begun or waiting_for is not None:
            state = "waiting"
        else:
            state = "running" if pilot.hold_reason is None else "holding"
        status = {
            "state": state,
            "instruction": self._instruction,
            "stamp": None if newest is None else newest / NANOSECONDS,
            "latency_s": round(pilot.latency, 4),
            "hold_reason": waiting_for or pilot.hold_reason,
            "clamped": list(pilot.clamp_reasons),
            "counts": dataclasses.asdict(pilot.counts) | {"commands": self._sent},
            "dry_run": self._settings.dry_run,
        }
        self._status.publish(String(data=json.dumps(status)))


def main(args: Sequence[str] | None = None) -> int:
    """``ros2 run crane_x7_vla vla_inference_node --ros-args -p model_path:=…``."""
    return run_node(NAME, InferenceNode, args)


if __name__ == "__main__":
    sys.exit(main())
