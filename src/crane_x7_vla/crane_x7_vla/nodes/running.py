"""The main function of every node: start, spin, and end on a signal or an error in the same way everywhere."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from crane_x7_vla import health
from crane_x7_vla.command import USER_ERROR
from crane_x7_vla.errors import USER_ERRORS, ConfigError

# How long a signal may wait for its turn, s.
_SPIN_S = 0.1


class _Interrupted(BaseException):
    """A signal came before the node was ready."""


class SuiteNode(Node):
    """A node whose callbacks can end it, by ``fail`` or ``finish`` instead of raising, and that says what it lacks."""

    failure: Exception | None = None
    finished = False

    def fail(self, error: Exception) -> None:
        """End the node with ``error``, once the present callback is done; the first one counts."""
        if self.failure is None:
            self.failure = error

    def finish(self) -> None:
        """End the node once the present callback is done, with exit code 0: what it was started for is done."""
        self.finished = True

    def lacks(self) -> str | None:
        """What the node needs and does not get, in words; None when it has everything. Called each second."""
        return None


class _RosHandler(logging.Handler):
    """Python's log records as the node's, so that modules without ROS are heard in /rosout too."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.name}: {self.format(record)}"
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def run_node(name: str, create: Callable[[], SuiteNode], args: Sequence[str] | None = None) -> int:
    """Run the node that ``create`` makes until SIGINT or SIGTERM (exit code 0) or a user error (one line, code 2).

    name: what the error's line begins with. Callbacks raise, or better ``fail``: a user error ends the node with its
    line, anything else with its traceback. What a node has to finish before it goes belongs into its ``destroy_node``,
    which is called in every case. Where CRANE_X7_STATUS_DIR is set it tells there what it lacks (``health``).
    """
    spinning, stop = threading.Event(), threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        stop.set()
        if not spinning.is_set():
            # Loading a model takes long, nobody should have to wait for it.
            raise _Interrupted

    # rclpy's own handlers shut the context down under a running callback, which ends in an RCLError now and then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        _initialise(args)
        node = create()
        spinning.set()
        handler = _RosHandler(node)
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.INFO)
        try:
            _report_health(node)
            executor = _executor(node)
            executor.add_node(node)
            while not stop.is_set() and not node.finished:
                executor.spin_once(timeout_sec=_SPIN_S)
                if node.failure is not None:
                    raise node.failure
        finally:
            _forget_health(node)
            node.destroy_node()
            logging.getLogger().removeHandler(handler)
    except USER_ERRORS as error:
        sys.stderr.write(f"{name}: {error}\n")
        return USER_ERROR
    except _Interrupted:
        return 0
    finally:
        rclpy.try_shutdown()
    return 0


def _report_health(node: SuiteNode) -> None:
    folder = _health_folder()
    if folder is not None:
        node.create_timer(
            health.PERIOD_S,
            lambda: health.report(folder, node.get_name(), node.lacks()),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )


def _forget_health(node: SuiteNode) -> None:
    folder = _health_folder()
    if folder is not None:
        health.forget(folder, node.get_name())


def _health_folder() -> Path | None:
    """None also for an empty name, as compose passes on what is not set."""
    name = os.environ.get(health.STATUS_DIR)
    return Path(name) if name else None


def _executor(node: Node) -> Executor:
    """rclpy's usual executor, or in lockstep the one that waits for events, where rclpy has it (Jazzy and later).

    The usual one goes through every entity of the node for every message: 1 ms of CPU per step and node (measured). It
    is the one that robots have been run with for years, so it drives the arm in real time.
    """
    lockstep = node.has_parameter("lockstep") and node.get_parameter("lockstep").value is True
    if not lockstep or importlib.util.find_spec("rclpy.experimental") is None:
        return SingleThreadedExecutor()
    return importlib.import_module("rclpy.experimental").EventsExecutor()


def _initialise(args: Sequence[str] | None) -> None:
    try:
        rclpy.init(args=None if args is None else list(args), signal_handler_options=SignalHandlerOptions.NO)
    except (rclpy_implementation.RCLError, rclpy_implementation.RCLInvalidROSArgsError) as error:
        raise ConfigError(f"ROS cannot be started: {' '.join(str(error).split())}") from error
