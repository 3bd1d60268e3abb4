from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from crane_x7_vla.errors import ConfigError
from crane_x7_vla.nodes import gripper
from crane_x7_vla.nodes.gripper import GripperAction, choose_interface


class Future:
    """Stands in for rclpy's, of a goal that is answered at once."""

    def __init__(self, accepted: bool) -> None:
        self._accepted = accepted

    def add_done_callback(self, callback: Callable[[Future], None]) -> None:
        callback(self)

    def result(self) -> Any:
        return SimpleNamespace(accepted=self._accepted)


class Client:
    """Stands in for rclpy's ActionClient."""

    def __init__(self, node: object, action: object, name: str) -> None:
        self.name = name
        self.ready = True
        self.accepting = True
        self.goals: list[tuple[float, float]] = []

    def server_is_ready(self) -> bool:
        return self.ready

    def send_goal_async(self, goal: Any) -> Future:
        self.goals.append((goal.command.position, goal.command.max_effort))
        return Future(self.accepting)


class Log:
    """Stands in for a node: keeps its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def get_logger(self) -> Any:
        return SimpleNamespace(warning=self.warnings.append)


@pytest.fixture
def control_msgs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which has no wheel in the registry."""
    action: Any = ModuleType("control_msgs.action")
    action.GripperCommand = SimpleNamespace(Goal=lambda: SimpleNamespace(command=SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "control_msgs", ModuleType("control_msgs"))
    monkeypatch.setitem(sys.modules, "control_msgs.action", action)
    monkeypatch.setattr(gripper, "ActionClient", Client)
    monkeypatch.setattr(gripper.importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("control_msgs")
def test_only_changes_are_sent_and_a_restarted_controller_gets_its_goal_again() -> None:
    node: Any = Log()
    driver = GripperAction(node, max_effort=0.5)
    client = driver._client  # pyright: ignore[reportPrivateUsage]
    assert client.name == "crane_x7_gripper_controller/gripper_cmd"
    for position in (0.6, 0.601, 0.595, 0.58, 0.1, 0.1):
        driver.send(position)
    assert client.goals == [(0.6, 0.5), (0.58, 0.5), (0.1, 0.5)]
    client.ready = False
    driver.send(0.3)
    client.ready = True
    driver.send(0.1)
    assert client.goals[3:] == [(0.1, 0.5)]
    assert node.warnings == []


@pytest.mark.usefixtures("control_msgs")
def test_a_rejected_goal_is_told_and_sent_again_but_not_at_once() -> None:
    now = 0.0
    node: Any = Log()
    driver = GripperAction(node, max_effort=0.0, clock=lambda: now)
    client = driver._client  # pyright: ignore[reportPrivateUsage]
    client.accepting = False
    sent = []
    for tick in range(250):
        now = 0.02 * tick
        client.accepting = tick >= 150
        driver.send(0.5 if tick < 120 else 0.1)
        sent.append(len(client.goals))
    # At 0 s and 2 s it was rejected; at 4 s it is taken.
    assert [sent[0], sent[99], sent[101], sent[199], sent[249]] == [1, 1, 2, 2, 3]
    assert [position for position, _ in client.goals] == [0.5, 0.5, 0.1]
    assert len(node.warnings) == 2
    assert "rejected a goal, sending it again in 2 s; is the controller active? See: ros2 control" in node.warnings[0]


@pytest.mark.usefixtures("control_msgs")
def test_where_control_msgs_is_installed_auto_is_both_but_for_lockstep() -> None:
    assert choose_interface("auto", lockstep=False) == ("trajectory", "action")
    assert choose_interface("auto", lockstep=True) == ("trajectory",)
    assert choose_interface("action", lockstep=False) == ("action",)
    assert choose_interface("trajectory", lockstep=False) == ("trajectory",)
    with pytest.raises(ConfigError, match="lockstep needs stamped commands"):
        choose_interface("action", lockstep=True)


def test_without_control_msgs_auto_is_the_topic_and_action_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gripper.importlib.util, "find_spec", lambda name: None)
    assert choose_interface("auto", lockstep=False) == ("trajectory",)
    with pytest.raises(ConfigError, match="needs the package control_msgs; install it with: apt install"):
        choose_interface("action", lockstep=False)
    with pytest.raises(ConfigError, match="gripper_interface is 'hand'"):
        choose_interface("hand", lockstep=False)
