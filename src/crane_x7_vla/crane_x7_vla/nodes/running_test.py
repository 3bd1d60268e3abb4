from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crane_x7_vla import health

pytestmark = pytest.mark.ros

PROGRAM = """
import logging, sys, time
from crane_x7_vla.errors import DataError
from crane_x7_vla.nodes.running import SuiteNode, run_node

class Example(SuiteNode):
    def __init__(self):
        super().__init__("example")
        self.declare_parameter("lockstep", LOCKSTEP)
        if MODE == "loading":
            print("loading", flush=True)
            time.sleep(60)
        if MODE == "start":
            raise DataError("no camera")
        self.create_timer(0.01, self.tick)

    def tick(self):
        if MODE == "raise":
            raise DataError("the disk is full")
        if MODE == "fail":
            self.fail(DataError("the disk is full"))
            self.fail(DataError("and more"))
        if MODE == "finish":
            self.finish()
        if MODE == "bug":
            raise KeyError("bug")
        logging.getLogger("some.module").warning("heard %s", "you")
        print("ready", flush=True)

    def lacks(self):
        return "a camera"

    def destroy_node(self):
        print("closed", flush=True)
        super().destroy_node()

MODE = sys.argv[1]
LOCKSTEP = "lockstep" in sys.argv
sys.exit(run_node("example", Example))
"""


def start(tmp_path: Path, *arguments: str, status: Path | str | None = None) -> subprocess.Popen[str]:
    environment = os.environ | {"ROS_LOG_DIR": str(tmp_path), "ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}
    if status is not None:
        environment[health.STATUS_DIR] = str(status)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("pace", ["realtime", "lockstep"])
def test_a_signal_ends_the_node_cleanly_with_zero(tmp_path: Path, number: int, pace: str) -> None:
    process = start(tmp_path, "run", pace)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert out.endswith("closed\n")
    assert "Traceback" not in err
    assert "some.module: heard you" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_loads_ends_the_node_at_once(tmp_path: Path, number: int) -> None:
    process = start(tmp_path, "loading")
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize(
    ("mode", "pace", "line"),
    [
        ("start", "realtime", "no camera"),
        ("raise", "realtime", "the disk is full"),
        ("fail", "realtime", "the disk is full"),
        ("fail", "lockstep", "the disk is full"),
    ],
)
def test_a_user_error_is_one_line_and_exit_2(tmp_path: Path, mode: str, pace: str, line: str) -> None:
    process = start(tmp_path, mode, pace)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert err.endswith(f"example: {line}\n")
    assert "Traceback" not in err
    assert "FATAL" not in err
    assert ("closed" in out) == (mode != "start")


@pytest.mark.parametrize("pace", ["realtime", "lockstep"])
def test_a_bug_keeps_its_traceback_and_still_closes(tmp_path: Path, pace: str) -> None:
    process = start(tmp_path, "bug", pace)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "KeyError: 'bug'" in err
    assert out == "closed\n"


def test_a_parameter_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, "run", "--ros-args", "--params-file", "/nowhere.yaml")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "example: ROS cannot be started: " in err
    assert "/nowhere.yaml" in err
    assert "Traceback" not in err


def test_a_node_that_is_done_closes_and_ends_with_0(tmp_path: Path) -> None:
    process = start(tmp_path, "finish")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[-1] == "closed"


def test_what_a_node_lacks_is_in_the_folder_for_health_checks_while_it_runs(tmp_path: Path) -> None:
    status = tmp_path / "status"
    process = start(tmp_path, "run", status=status)
    deadline = time.monotonic() + 60
    while health.problem(status, "example") != "example is waiting: a camera":
        assert time.monotonic() < deadline, health.problem(status, "example")
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert health.problem(status, "example") == "example is not running yet"


def test_an_empty_name_of_the_folder_is_none(tmp_path: Path) -> None:
    process = start(tmp_path, "run", status="")
    assert process.stdout is not None
    # The first report would be there after a second.
    for _ in range(150):
        process.stdout.readline()
    assert not (tmp_path / "example.json").exists()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
