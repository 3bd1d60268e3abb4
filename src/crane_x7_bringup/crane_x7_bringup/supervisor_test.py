from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crane_x7_bringup.supervisor import NodeEndedError, NodeSpec, Supervisor
from crane_x7_vla.errors import ConfigError

PROGRAM = """
import os, signal, subprocess, sys, time

def say(text):
    print(text, flush=True)

def main():
    mode = sys.argv[-1].split(":=")[1].strip('"')
    ended = []
    if mode == "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGINT, lambda *_: ended.append(1))
    if mode == "parent":
        grandchild = subprocess.Popen(["sleep", "60"])
        say(f"grandchild {grandchild.pid}")
    if mode == "fails":
        say("reading the model")
        say("the model is broken")
        return 3
    if mode == "finishes":
        return 0
    say(f"{mode} domain {os.environ['ROS_DOMAIN_ID']} pid {os.getpid()}")
    while not ended:
        time.sleep(0.01)
    say("saved")
    return 0
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package ``example`` with the executable ``node``."""
    folder = tmp_path / "installed"
    info = folder / "example-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nnode = example_program:main\n")
    (folder / "example_program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def node(name: str, mode: str = "waits") -> NodeSpec:
    return NodeSpec(name=name, package="example", module="crane_x7_bringup", executable="node", parameters={"m": mode})


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Lines:
    """What the nodes have said."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    def __call__(self, name: str, line: str) -> None:
        self.all.append((name, line))

    def wait_for(self, name: str, beginning: str) -> str:
        """The rest of the first line of ``name`` that begins so."""

        def found() -> list[str]:
            return [line for who, line in list(self.all) if who == name and line.startswith(beginning)]

        wait_until(lambda: bool(found()), f"'{beginning}' of {name} in {self.all}")
        return found()[0].removeprefix(beginning).strip()


pytestmark = pytest.mark.usefixtures("package")


def test_a_node_that_may_finish_ends_all_without_an_error(tmp_path: Path) -> None:
    nodes = [node("stays"), dataclasses.replace(node("goes", "finishes"), may_finish=True)]
    with Supervisor(nodes, domain=42, log_dir=tmp_path / "log") as supervisor:
        assert supervisor.wait(threading.Event(), timeout=20.0)
        assert supervisor.finished


def test_a_node_that_may_finish_may_not_fail(tmp_path: Path) -> None:
    nodes = [dataclasses.replace(node("goes", "fails"), may_finish=True)]
    with (
        Supervisor(nodes, domain=42, log_dir=tmp_path / "log") as supervisor,
        pytest.raises(NodeEndedError, match="exit code 3"),
    ):
        supervisor.wait(threading.Event(), timeout=20.0)


def test_nodes_run_in_the_domain_and_save_on_leaving(tmp_path: Path) -> None:
    lines = Lines()
    with Supervisor([node("one"), node("two")], domain=42, log_dir=tmp_path / "log", sink=lines) as supervisor:
        for name in ("one", "two"):
            lines.wait_for(name, "waits domain 42 pid ")
        supervisor.check()
    assert {("one", "saved"), ("two", "saved")} <= set(lines.all)
    assert (tmp_path / "log" / "one.log").read_text().endswith("saved\n")


def test_a_reader_that_is_gone_and_a_full_disk_are_told_and_hang_nothing(tmp_path: Path) -> None:
    def gone(_name: str, _line: str) -> None:
        raise BrokenPipeError

    with (
        Supervisor([node("one")], domain=42, log_dir=tmp_path, sink=gone) as supervisor,
        pytest.raises(BrokenPipeError),
    ):
        wait_until(lambda: supervisor.check() is not None, "the error")
    (tmp_path / "two.log").symlink_to("/dev/full")
    with (
        Supervisor([node("two")], domain=42, log_dir=tmp_path) as supervisor,
        pytest.raises(ConfigError, match=r"two\.log cannot be written: No space left on device"),
    ):
        wait_until(lambda: supervisor.check() is not None, "the error")


def test_when_a_node_is_killed_the_others_are_stopped_and_it_is_named(tmp_path: Path) -> None:
    lines = Lines()
    with Supervisor([node("one"), node("two")], domain=42, log_dir=tmp_path, sink=lines) as supervisor:
        pids = [int(lines.wait_for(name, "waits domain 42 pid ")) for name in ("one", "two")]
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(
            NodeEndedError,
            match=r"node two ended with signal SIGKILL \(out of memory\?\): waits .* \(log: .*two\.log\)",
        ) as ended:
            wait_until(lambda: supervisor.check() is not None, "the end")
        assert ended.value.code == 137
    assert not any(alive(pid) for pid in pids)
    assert ("one", "saved") in lines.all


@pytest.mark.parametrize(("mode", "code", "said"), [("fails", 3, ": the model is broken "), ("finishes", 0, " ")])
def test_a_node_that_ends_by_itself_is_reported_and_never_a_success(
    tmp_path: Path, mode: str, code: int, said: str
) -> None:
    with (
        Supervisor([node("one"), node("two", mode)], domain=42, log_dir=tmp_path) as supervisor,
        pytest.raises(NodeEndedError, match=f"node two ended with exit code {code}{said}") as ended,
    ):
        wait_until(lambda: supervisor.check() is not None, "the end")
    assert ended.value.code == (code or 1)


def test_a_stubborn_node_and_what_a_node_has_started_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crane_x7_bringup.supervisor._TERMINATE_S", 0.2)
    lines = Lines()
    nodes = [node("one", "stubborn"), node("two", "parent")]
    with Supervisor(nodes, domain=42, log_dir=tmp_path, sink=lines, grace_s=0.2):
        stubborn = int(lines.wait_for("one", "stubborn domain 42 pid "))
        grandchild = int(lines.wait_for("two", "grandchild"))
    assert not alive(stubborn)
    assert not alive(grandchild)


def test_an_exception_in_the_body_stops_the_nodes(tmp_path: Path) -> None:
    lines = Lines()

    def work() -> None:
        with Supervisor([node("one")], domain=42, log_dir=tmp_path, sink=lines):
            lines.wait_for("one", "waits domain 42 pid ")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not alive(int(lines.wait_for("one", "waits domain 42 pid ")))


def test_killing_the_supervisor_kills_its_nodes(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from crane_x7_bringup.supervisor import NodeSpec, Supervisor
        node = NodeSpec(
            name="one", package="example", module="lift", executable="node", parameters={"m": "stubborn"}
        )
        with Supervisor([node], domain=42, log_dir=Path(sys.argv[1]), sink=lambda _, line: print(line, flush=True)):
            time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline().split()[-1])
    assert alive(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: not alive(pid), "the node's end")


def test_a_node_whose_parent_is_gone_before_it_looks_leaves_at_once() -> None:
    command = [sys.executable, "-m", "crane_x7_bringup.child", "node", "0", "example", "node", "m:=waits"]
    assert subprocess.run(command, check=False, timeout=20, stdin=subprocess.DEVNULL).returncode == 1


def test_nothing_starts_when_one_node_cannot(tmp_path: Path) -> None:
    missing = NodeSpec(name="two", package="nowhere", module="crane_x7_bringup", executable="node")
    wrong = NodeSpec(name="two", package="example", module="crane_x7_bringup", executable="nodule")
    no_file = NodeSpec(
        name="two", package="example", module="crane_x7_bringup", executable="node", params_file="none.yaml"
    )
    for bad, text in (
        (missing, "package nowhere is not installed"),
        (wrong, "no executable 'nodule'; it has: node"),
        (no_file, "parameter file of node two not found: .*none.yaml"),
        (node("one"), "names must differ"),
    ):
        with pytest.raises(ConfigError, match=text):
            Supervisor([node("one"), bad], domain=42, log_dir=tmp_path / "log").start()
    assert not (tmp_path / "log").exists()


def test_values_reach_the_node_as_what_they_are(tmp_path: Path) -> None:
    spec = NodeSpec(
        name="n",
        package="example",
        module="crane_x7_bringup",
        executable="node",
        params_file=str(tmp_path),
        parameters={"text": "yes", "on": True, "rate": 0.5, "names": ["a", "b"], "none": []},
        remappings={"joint_states": "/arm/joint_states"},
    )
    with pytest.raises(ConfigError, match="not found"):
        spec.arguments()
    (tmp_path / "p.yaml").touch()
    words = NodeSpec(
        name="n",
        package="example",
        module="crane_x7_bringup",
        executable="node",
        params_file=str(tmp_path / "p.yaml"),
        parameters=spec.parameters,
        remappings=spec.remappings,
    ).arguments()
    assert words == [
        "--ros-args",
        *("-r", "__node:=n"),
        *("--params-file", str(tmp_path / "p.yaml")),
        *("-p", 'text:="yes"'),
        *("-p", "on:=true"),
        *("-p", "rate:=0.5"),
        *("-p", 'names:=["a", "b"]'),
        *("-p", 'none:=[""]'),
        *("-r", "joint_states:=/arm/joint_states"),
    ]
