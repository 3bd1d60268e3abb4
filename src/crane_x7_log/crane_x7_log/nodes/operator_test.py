"""The operator against a recorder and a graph that are played here, without DDS."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import cast

import pytest
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

from crane_x7_log.nodes.operator import Operator
from crane_x7_log.recorder import STOPPED, RefusedError
from crane_x7_log.status import Finished, State, Status
from crane_x7_log.unattended import UnattendedConfig
from crane_x7_vla.nodes.running import SuiteNode

CONFIG = UnattendedConfig(episodes=2, episode_s=10.0, pause_s=5.0)
SECOND = 1_000_000_000


class Graph:
    """The node, as far as the operator uses it, and the service ``lift/next``."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.asked: list[Future] = []
        self.on_episode_end: Callable[[String], None] = lambda _: None

    def create_client(self, *_: object) -> Graph:
        return self

    def create_subscription(self, _type: object, _topic: str, callback: Callable[[String], None], _qos: object) -> None:
        self.on_episode_end = callback

    def service_is_ready(self) -> bool:
        return True

    def call_async(self, _: Trigger.Request) -> Future:
        self.asked.append(Future())
        return self.asked[-1]

    def fail(self, error: Exception) -> None:
        self.failure = error

    def answer(self, text: str, *, success: bool = True) -> None:
        self.asked[-1].set_result(Trigger.Response(success=success, message=text))

    def begin(self, stamp_ns: int, *, seed: int = 7) -> None:
        self.answer(json.dumps({"seed": seed, "stamp_ns": stamp_ns}))

    def end(self, stamp_ns: int, *, success: bool = True, seed: int = 7) -> None:
        self.on_episode_end(String(data=json.dumps({"seed": seed, "success": success, "stamp_ns": stamp_ns})))


class Recorder:
    """Its state is set by the tests too, as by somebody who calls its services."""

    def __init__(self) -> None:
        self.state = State.IDLE
        self.last: Finished | None = None
        self.calls: list[object] = []
        self.reached_ns = 0
        self.refuses = False

    def start(self, seed: int | None, *, afresh: bool) -> str:
        self.calls.append(("start", seed, afresh))
        self.state = State.WAITING
        return "recording"

    def stop(self) -> str:
        if self.refuses:
            raise RefusedError("the episode is being saved already")
        self.calls.append("stop")
        self.save()
        return "saving"

    def save(self) -> None:
        self.state = State.IDLE
        self.last = Finished(outcome="saved", path="episode_0", steps=9, success=None, reason=STOPPED)

    def mark_success(self, success: bool) -> str:
        self.calls.append(("mark", success))
        return "marked"

    def has_all_since(self, stamp_ns: int) -> bool:
        return self.reached_ns >= stamp_ns

    def status(self) -> Status:
        return Status(
            state=self.state.value,
            steps=0,
            episode="",
            instruction="",
            missed={},
            dropped={},
            waiting_for=(),
            saved=0,
            last=self.last,
        )


class Stage:
    def __init__(self, config: UnattendedConfig = CONFIG) -> None:
        self.graph, self.recorder, self.now = Graph(), Recorder(), 0.0
        self.operator = Operator(
            cast(SuiteNode, self.graph),
            config,
            start=self.recorder.start,
            stop=self.recorder.stop,
            mark_success=self.recorder.mark_success,
            has_all_since=self.recorder.has_all_since,
        )

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 0.05
            self.operator.tick(self.recorder.status(), self.now)

    def reset(self, stamp_ns: int) -> None:
        """As far as the answer of the simulator and its first messages."""
        self.tick()
        self.graph.begin(stamp_ns)
        self.recorder.reached_ns = stamp_ns


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_scene_is_reset_recorded_marked_and_stopped_when_it_is_over(stage: Stage) -> None:
    stage.tick(2)
    stage.graph.begin(SECOND)
    stage.tick(2)
    assert stage.recorder.calls == []  # its first pictures have not come
    stage.recorder.reached_ns = SECOND
    stage.tick(2)
    assert stage.recorder.calls == [("start", 7, False)]
    stage.recorder.state = State.RECORDING
    stage.tick(2)
    stage.graph.end(2 * SECOND, success=False)
    stage.tick(2)
    assert stage.recorder.calls[1:] == [("mark", False), "stop"]
    assert stage.graph.failure is None


def test_the_end_of_a_scene_that_is_being_reset_is_not_that_of_the_next(stage: Stage) -> None:
    stage.reset(SECOND)
    stage.tick()
    stage.recorder.state = State.RECORDING
    stage.tick()
    stage.now += CONFIG.episode_s
    stage.tick(3)
    assert stage.recorder.calls[-1] == "stop"
    assert len(stage.graph.asked) == 2
    stage.graph.end(2 * SECOND)
    stage.graph.begin(4 * SECOND)
    stage.recorder.reached_ns = 4 * SECOND
    stage.tick()
    stage.recorder.state = State.RECORDING
    stage.tick(5)
    assert stage.recorder.calls[2:] == [("start", 7, False)]


def test_an_episode_that_somebody_has_just_stopped_does_not_end_the_recorder(stage: Stage) -> None:
    stage.reset(SECOND)
    stage.tick()
    stage.recorder.state, stage.recorder.refuses = State.RECORDING, True
    stage.tick()
    stage.graph.end(2 * SECOND)
    stage.tick(2)
    stage.recorder.save()
    stage.tick(2)
    assert stage.graph.failure is None
    assert len(stage.graph.asked) == 2, "it goes on with the next scene"


@pytest.mark.parametrize(
    ("text", "success", "message"),
    [
        ("parameter 'seed' must be 0 or more", False, "lift/next: parameter 'seed' must be 0 or more"),
        ("done", True, "lift/next: expected JSON with seed and stamp_ns, got 'done'"),
    ],
)
def test_an_answer_that_is_no_scene_ends_the_node_with_one_line(
    stage: Stage, text: str, success: bool, message: str
) -> None:
    stage.tick()
    stage.graph.answer(text, success=success)
    assert str(stage.graph.failure) == message


def test_a_simulator_that_does_not_answer_is_an_error(stage: Stage) -> None:
    stage.tick()
    stage.now += 30
    stage.tick()
    assert "no new scene within 30 s of lift/next" in str(stage.graph.failure)


def test_in_lockstep_the_seed_is_that_after_the_scene_that_is_over_whoever_chose_it() -> None:
    stage = Stage(dataclasses.replace(CONFIG, lockstep=True))
    stage.graph.end(SECOND, seed=7)
    stage.tick()
    assert stage.recorder.calls == [("start", 8, True)]
    stage.reset(2 * SECOND)
    stage.tick()
    stage.recorder.state = State.IDLE  # discarded by somebody, who then chooses a scene
    stage.tick(3)
    stage.graph.end(9 * SECOND, seed=50)
    stage.tick(2)
    assert stage.recorder.calls == [("start", 8, True), ("start", 51, True)]
