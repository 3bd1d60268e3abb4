"""Starts nodes, keeps watch over them and stops them together: ``ros2 launch`` for machines that have only rclpy.

Promises, each with a test: nodes get the signals they would get from a launch; when one ends, all end; none outlives
the supervisor, whatever kills it; every line of output is kept in a file per node.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any

from crane_x7_bringup.child import ending, entry_point, node_command
from crane_x7_bringup.shared_memory import clean_shared_memory
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.nodes.domain import environment

# Between SIGTERM and SIGKILL, s.
_TERMINATE_S = 3.0
_POLL_S = 0.05
# How long a killed process may take to be gone; one that the kernel does not let go is left to it, s.
_REAP_S = 10.0

Sink = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One node to start, as a launch file would.

    name: the node's name in the graph. package, executable: as for ``ros2 run``. params_file: file in the ``params``
    folder of the package's ``module``, or an absolute path, or None. parameters: override the file. remappings: topics.
    may_finish: with exit code 0 it has done what it was started for, which then is so for all of them.
    """

    name: str
    package: str
    module: str
    executable: str
    params_file: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remappings: Mapping[str, str] = field(default_factory=dict)
    may_finish: bool = False

    def arguments(self) -> list[str]:
        """The node's command line. Raises ConfigError when the parameter file is not there."""
        words = ["--ros-args", "-r", f"__node:={self.name}"]
        if self.params_file is not None:
            path = Path(str(files(self.module) / "params" / self.params_file))
            if not path.is_file():
                raise ConfigError(f"parameter file of node {self.name} not found: {path}")
            words += ["--params-file", str(path)]
        for name, value in self.parameters.items():
            # JSON is YAML, and a quoted string stays a string whatever it says. An empty list would be no value at all.
            given = [""] if value == [] else value
            words += ["-p", f"{name}:={json.dumps(given, ensure_ascii=False)}"]
        for old, new in self.remappings.items():
            words += ["-r", f"{old}:={new}"]
        return words


class NodeEndedError(RuntimeError):
    """A node ended while it was needed.

    code: what a shell would report, 128 + number for a signal; 1 for a node that was content to end.
    """

    def __init__(self, name: str, returncode: int, last_line: str, log: Path) -> None:
        self.name = name
        code, how = ending(returncode)
        self.code = code or 1
        said = f": {last_line}" if last_line else ""
        super().__init__(f"node {name} ended with {how}{said} (log: {log})")


class _Child:
    """A started node and the thread that watches it and reads what it says."""

    def __init__(self, spec: NodeSpec, environ: Mapping[str, str], log: Path, sink: Sink | None, ended: list[_Child]):
        self.spec = spec
        self.log = log
        self.last_line = ""
        self.done = threading.Event()
        # Why its output is no longer kept or shown; the node itself goes on until somebody asks.
        self.fault: Exception | None = None
        self._file = log.open("ab", buffering=0)
        self.process = subprocess.Popen(
            node_command(spec.package, spec.executable, spec.arguments()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            # Ctrl-C in a terminal goes to the foreground group; only the supervisor is to get it.
            start_new_session=True,
        )
        self._sink = sink
        self._ended = ended
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name=f"watch {spec.name}", daemon=True).start()

    def send(self, number: signal.Signals) -> None:
        """To the node and whatever it has started; nothing happens once it has ended."""
        with self._lock:
            if not self.done.is_set():
                _signal_group(self.process.pid, number)

    def _watch(self) -> None:
        assert self.process.stdout is not None
        output = self.process.stdout.fileno()
        end = os.pidfd_open(self.process.pid)
        waiting = {output, end}
        poller = select.poll()
        for descriptor in waiting:
            poller.register(descriptor, select.POLLIN)
        rest = b""
        while waiting:
            for descriptor, _ in poller.poll():
                data = os.read(output, 1 << 16) if descriptor == output else b""
                if not data:
                    poller.unregister(descriptor)
                    waiting.discard(descriptor)
                if descriptor == end:
                    # What the node leaves running would keep its output open. It is not reaped yet, so that its
                    # number is still its own.
                    _signal_group(self.process.pid, signal.SIGKILL)
                *lines, rest = (rest + data).split(b"\n")
                self._keep(data, lines)
        self._keep(b"", [rest])
        self._file.close()
        os.close(end)
        with self._lock:
            self.process.wait()
            self.process.stdout.close()
            self._ended.append(self)
            self.done.set()

    def _keep(self, data: bytes, lines: Sequence[bytes]) -> None:
        """Write to the log and tell the sink; where one of them fails the node's output must still be taken from it."""
        texts = [text for raw in lines if (text := raw.decode(errors="replace").rstrip())]
        if texts:
            self.last_line = texts[-1]
        if self.fault is not None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self.fault = ConfigError(
                f"the log {self.log} cannot be written: {error.strerror}; make room on that disk and run it again"
            )
            return
        try:
            for text in texts:
                if self._sink is not None:
                    self._sink(self.spec.name, text)
        except Exception as error:  # noqa: BLE001 - the thread must live until the node has ended; check() raises it
            self.fault = error


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


class Supervisor:
    """Nodes that live and end together: ``with Supervisor(nodes, …) as supervisor: … supervisor.check()``.

    Start it from the main thread: the kernel ties the nodes to the thread that started them.
    """

    def __init__(
        self,
        nodes: Sequence[NodeSpec],
        *,
        domain: int,
        log_dir: Path,
        sink: Sink | None = None,
        grace_s: float = 10.0,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """domain: ROS domain, see ``domain.take_domain``. log_dir: gets ``<name>.log`` per node and ROS's own logs.

        sink: called with (node name, line) for each line a node writes, from a thread of its own.
        grace_s: how long a node may take after SIGINT, to save what it has. variables: added to the environment.
        """
        self._nodes = tuple(nodes)
        self._log_dir = log_dir
        self._sink = sink
        self._grace_s = grace_s
        self._environ = {
            **os.environ,
            **environment(domain),
            "ROS_LOG_DIR": str(log_dir / "ros"),
            "PYTHONUNBUFFERED": "1",
            **(variables or {}),
        }
        self._children: list[_Child] = []
        self._ended: list[_Child] = []

    def start(self) -> None:
        """Start every node, or none: raises ConfigError when one cannot be (not installed, no parameter file)."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start the supervisor from the main thread, its nodes end with the thread")
        names = [node.name for node in self._nodes]
        if len(set(names)) != len(names):
            raise ConfigError(f"node names must differ, got {', '.join(names)}")
        for node in self._nodes:
            entry_point(node.package, node.executable)
            node.arguments()
        self._log_dir.mkdir(parents=True, exist_ok=True)
        clean_shared_memory()
        try:
            for node in self._nodes:
                log = self._log_dir / f"{node.name}.log"
                self._children.append(_Child(node, self._environ, log, self._sink, self._ended))
        except BaseException:
            self.stop()
            raise

    @property
    def finished(self) -> bool:
        """Whether the first node to end is one that may finish, and did."""
        return bool(self._ended) and self._ended[0].spec.may_finish and self._ended[0].process.returncode == 0

    def check(self) -> None:
        """Raise NodeEndedError for the node that ended first, if one did, or what keeps output from being kept."""
        for child in self._children:
            if child.fault is not None:
                raise child.fault
        if self._ended and not self.finished:
            first = self._ended[0]
            raise NodeEndedError(first.spec.name, first.process.returncode, first.last_line, first.log)

    def wait(self, stop: threading.Event, timeout: float | None = None) -> bool:
        """Watch until ``stop`` is set or a node has finished (True) or ``timeout`` s have passed (False).

        Raises as ``check``.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not stop.wait(_POLL_S):
            self.check()
            if self.finished:
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
        return True

    def stop(self) -> None:
        """Ask every node to end, then make it: SIGINT, after the grace SIGTERM, then SIGKILL. May be called twice.

        Another Ctrl-C while it waits skips the rest of the waiting.
        """
        try:
            self._ask(signal.SIGINT, self._grace_s)
            self._ask(signal.SIGTERM, _TERMINATE_S)
        finally:
            for child in self._children:
                child.send(signal.SIGKILL)
            for child in self._children:
                child.done.wait(_REAP_S)
            clean_shared_memory()

    def _ask(self, number: signal.Signals, patience: float) -> None:
        for child in self._children:
            child.send(number)
        deadline = time.monotonic() + patience
        for child in self._children:
            child.done.wait(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
