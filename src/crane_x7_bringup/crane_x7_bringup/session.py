"""A client of the running nodes: resets the simulator, presses the buttons, reads what they report.

For the demo, scripts and tests. Everything waits on a condition with a limit and fails as soon as a node has ended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import rclpy
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from crane_x7_vla.errors import DataError
from crane_x7_vla.nodes.domain import environment
from crane_x7_vla.nodes.messages import latched_qos, sensor_qos, stamp_ns
from lift.nodes.sim_node import Settings
from lift.nodes.topics import EPISODE_END, OBJECT_POSE, RESET

# Discovery took up to 3 s on a loaded machine, starting a node with a model much longer.
DISCOVERY_S = 120.0
ANSWER_S = 60.0
# In lockstep the simulator itself ends with an error when a command is late, but for the first one of an episode, which
# may take longer: whoever drives has to see the reset.
STANDSTILL_S = Settings().command_timeout + 30.0
_SPIN_S = 0.05

Json = Mapping[str, Any]


class Session:
    """``with Session(domain, watch=supervisor.check) as session: session.reset_simulator(7)``."""

    def __init__(self, domain: int, *, watch: Callable[[], None] = lambda: None, name: str = "session") -> None:
        """watch: called while waiting; raises when it is no use to wait on. name: of the client's node."""
        self._watch = watch
        self._context = Context()
        # DDS reads the discovery range from the environment when the first node of a context is made.
        kept = {key: os.environ.get(key) for key in environment(domain)}
        os.environ.update(environment(domain))
        try:
            # Without args it would read the command line of whoever uses it.
            rclpy.init(args=[], context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
            self._node = rclpy.create_node(name, context=self._context, use_global_arguments=False)
        finally:
            for key, value in kept.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._clients: dict[str, Client] = {}
        self._heard: dict[str, list[Json]] = {}
        self._reset_stamp = 0
        self._instant = 0
        self._listen(EPISODE_END)
        self.subscribe(PoseStamped, OBJECT_POSE, self._on_instant, sensor_qos(lockstep=True))

    @property
    def node(self) -> Node:
        """The client's node, for further publishers and subscriptions; it is spun while the session waits."""
        return self._node

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown(timeout_sec=1.0)
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- waiting ------------------------------------------------------------------------------------------------------

    def wait_until(self, condition: Callable[[], bool], what: str, *, timeout: float = ANSWER_S) -> None:
        """Handle messages until ``condition`` holds; raises TimeoutError "waited … for ``what``", or as ``watch``."""
        deadline = time.monotonic() + timeout
        while not condition():
            self._watch()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout:g} s for {what}")
            self._executor.spin_once(timeout_sec=_SPIN_S)

    def wait_connected(
        self, topic: str, *, publishers: int = 1, subscribers: int = 1, timeout: float = DISCOVERY_S
    ) -> None:
        """Wait until ``topic`` has at least so many ends, of whichever nodes."""
        self.wait_until(
            lambda: (
                self._node.count_publishers(topic) >= publishers and self._node.count_subscribers(topic) >= subscribers
            ),
            f"{publishers} publishers and {subscribers} subscribers of {topic}",
            timeout=timeout,
        )

    # -- simulator ----------------------------------------------------------------------------------------------------

    def reset_simulator(self, seed: int) -> int:
        """Start the episode of ``seed``; returns the stamp of its first instant, ns."""
        self.set_parameter("sim", "seed", seed)
        answer = json.loads(self.call_trigger(RESET))
        if answer["seed"] != seed:
            raise DataError(f"{RESET} began seed {answer['seed']} instead of {seed}; who else resets the simulator?")
        self._reset_stamp = int(answer["stamp_ns"])
        return self._reset_stamp

    def wait_episode_end(self, *, standstill: float = STANDSTILL_S) -> Json:
        """How the episode since the last ``reset_simulator`` ended, see the sim node's ``lift/episode``.

        Raises TimeoutError when simulated time stands still for ``standstill`` s, or as ``watch``.
        """

        def ended() -> list[Json]:
            return [end for end in self._heard[EPISODE_END] if end["stamp_ns"] > self._reset_stamp]

        while not ended():
            seen = self._instant
            self.wait_until(
                lambda seen=seen: bool(ended()) or self._instant != seen,
                "the simulated arm to move on; does the node that drives it still answer?",
                timeout=standstill,
            )
        return ended()[-1]

    def _on_instant(self, message: PoseStamped) -> None:
        self._instant = stamp_ns(message.header)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def call_trigger(self, service: str, *, timeout: float = ANSWER_S, discovery: float = DISCOVERY_S) -> str:
        """Call a std_srvs/Trigger service; returns its message, raises DataError with it when it refuses."""
        result = self._call(Trigger, service, Trigger.Request(), timeout, discovery)
        if not result.success:
            raise DataError(f"{service}: {result.message}")
        return result.message

    def call_bool(self, service: str, *, value: bool, timeout: float = ANSWER_S, discovery: float = DISCOVERY_S) -> str:
        """Call a std_srvs/SetBool service; returns its message, raises DataError with it when it refuses."""
        result = self._call(SetBool, service, SetBool.Request(data=value), timeout, discovery)
        if not result.success:
            raise DataError(f"{service}: {result.message}")
        return result.message

    def subscribe(self, kind: type, topic: str, keep: Callable[[Any], None], qos: QoSProfile) -> None:
        """Hand each message of ``topic`` to ``keep`` while waiting for something else."""
        self._node.create_subscription(kind, topic, keep, qos)

    def set_parameter(
        self,
        node: str,
        name: str,
        value: bool | int | float | str | list[Any],
        *,
        timeout: float = ANSWER_S,
        discovery: float = DISCOVERY_S,
    ) -> None:
        """Set a parameter of ``node``; raises DataError with its reason when it refuses."""
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        (result,) = self._call(SetParameters, f"{node}/set_parameters", request, timeout, discovery).results
        if not result.successful:
            raise DataError(f"parameter {name} of {node} cannot be set to {value!r}: {result.reason}")

    def status(self, node: str, *, timeout: float = DISCOVERY_S) -> Json:
        """The newest ``<node>/status``; waits for the first one."""
        return self.wait_status(node, lambda _: True, f"the status of {node}", timeout=timeout)

    def wait_status(self, node: str, fits: Callable[[Json], bool], what: str, *, timeout: float = DISCOVERY_S) -> Json:
        """The newest ``<node>/status`` once it fits."""
        heard = self._listen(f"{node}/status")
        self.wait_until(lambda: bool(heard) and fits(heard[-1]), what, timeout=timeout)
        return heard[-1]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _listen(self, topic: str) -> list[Json]:
        """What came on ``topic`` since the first call, JSON in std_msgs/String, newest last, a few only."""
        if topic not in self._heard:
            heard: list[Json] = []

            def keep(message: String) -> None:
                heard.append(json.loads(message.data))
                del heard[:-10]

            self._heard[topic] = heard
            self._node.create_subscription(String, topic, keep, latched_qos())
        return self._heard[topic]

    def _call(self, kind: Any, service: str, request: Any, timeout: float, discovery: float) -> Any:
        if service not in self._clients:
            self._clients[service] = self._node.create_client(kind, service)
        client = self._clients[service]
        self.wait_until(client.service_is_ready, f"service {service}", timeout=discovery)
        future = client.call_async(request)
        try:
            self.wait_until(future.done, f"an answer of service {service}", timeout=timeout)
        finally:
            if not future.done():
                client.remove_pending_request(future)
        return future.result()
