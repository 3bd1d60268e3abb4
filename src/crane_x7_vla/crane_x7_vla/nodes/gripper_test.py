from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from crane_x7_vla.errors import ConfigError
from crane_x7_vla.nodes import gripper
from crane_x7_vla.nodes.gripper import GripperAction, choose_interface


class Client:
    """Stands in for rclpy's ActionClient."""

    def __init__(self, node: object, action: object, name: str) -> None:
        self.name = name
        self.ready = True
        self.goals: list[tuple[float, float]] = []

    def server_is_ready(self) -> bool:
        return self.ready

    def send_goal_async(self, goal: Any) -> None:
        self.goals.append((goal.command.position, goal.command.max_effort))


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
    node: Any = None
    driver = GripperAction(node, max_effort=0.5)
    client = driver._client  # pyright: ignore[reportPrivateUsage]
    assert client.name == "crane_x7_gripper_controller/gripper_cmd"
    for position in (0.6, 0.601, 0.595, 0.58, 0.1, 0.1):
        assert driver.send(position)
    assert client.goals == [(0.6, 0.5), (0.58, 0.5), (0.1, 0.5)]
    client.ready = False
    assert not driver.send(0.3)
    client.ready = True
    assert driver.send(0.1)
    assert client.goals[-1] == (0.1, 0.5)
    assert len(client.goals) == 4


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
