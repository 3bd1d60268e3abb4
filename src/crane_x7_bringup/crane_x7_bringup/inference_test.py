"""The inference node in the graph: with a real tiny model, and with a stand-in policy that can be told to misbehave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from crane_x7_bringup.profiles import INFERENCE, SIM
from crane_x7_bringup.session import Json, Session
from crane_x7_bringup.supervisor import NodeEndedError, NodeSpec, Supervisor
from crane_x7_vla.nodes.domain import take_domain
from crane_x7_vla.nodes.messages import (
    AT_ONCE,
    command_qos,
    joint_state_message,
    publisher_qos,
    rgb_to_image,
    stamp_ns,
    trajectory_points,
)
from crane_x7_vla.protocol import ARM_TOPIC, GRIPPER_TOPIC, JOINT_STATES, camera_topic
from crane_x7_vla.robot import CRANE_X7

pytestmark = pytest.mark.ros

HOME = np.array(CRANE_X7.home, np.float32)
PERIOD = 100_000_000

# A policy that turns joint 1 by 0.01 rad a row; what it does otherwise is said by the instruction.
STAND_IN = """
import sys
import threading
import numpy as np
from crane_x7_vla.config.base import CameraConfig
from crane_x7_vla.nodes.inference_node import NAME, InferenceNode
from crane_x7_vla.nodes.running import run_node
from crane_x7_vla.policies.policy import PolicySpec
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.types import ActionChunk

class Policy:
    spec = PolicySpec(
        robot=CRANE_X7, cameras=(CameraConfig(name="primary"),), action_horizon=8, n_action_steps=4, dt=0.1, history=0,
        action_form="absolute", action_source="commanded", backend="stand-in",
    )

    def infer(self, observations, *, running=None, rng=None):
        (observation,) = observations
        if observation.instruction == "hang":
            threading.Event().wait()
        if observation.instruction == "raise":
            raise RuntimeError("out of ideas")
        rows = np.tile(observation.commanded, (8, 1))
        rows[:, 0] += 0.01 * np.arange(1, 9, dtype=np.float32)
        if observation.instruction == "nan":
            rows[5, 2] = np.nan
        return [ActionChunk(actions=rows, dt=0.1, stamp=observation.stamp)]

def main():
    return run_node(NAME, lambda: InferenceNode(load=lambda settings: Policy()))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeSpec:
    """The inference node with the stand-in policy, as an installed executable."""
    folder = tmp_path / "installed"
    info = folder / "stand_in-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stand_in\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nnode = stand_in_program:main\n")
    (folder / "stand_in_program.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return NodeSpec(name="vla_inference", package="stand_in", module="crane_x7_vla", executable="node")


def with_parameters(spec: NodeSpec, **parameters: object) -> NodeSpec:
    return NodeSpec(
        name=spec.name,
        package=spec.package,
        module=spec.module,
        executable=spec.executable,
        params_file=spec.params_file,
        parameters=parameters,
    )


@contextmanager
def graph(log_dir: Path, *nodes: NodeSpec) -> Iterator[Session]:
    with (
        take_domain() as domain,
        Supervisor(nodes, domain=domain.number, log_dir=log_dir) as supervisor,
        Session(domain.number, watch=supervisor.check) as session,
    ):
        yield session


class Arm:
    """The other end of the node: shows joints and pictures, keeps the commands."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.commands: dict[str, list[tuple[int, int, np.ndarray]]] = {"arm": [], "gripper": []}
        self._joints = session.node.create_publisher(JointState, JOINT_STATES, publisher_qos())
        self._images = session.node.create_publisher(Image, camera_topic("primary"), publisher_qos())
        for part, topic in (("arm", ARM_TOPIC), ("gripper", GRIPPER_TOPIC)):
            session.subscribe(JointTrajectory, topic, self._keeper(part), command_qos())
        for topic in (JOINT_STATES, camera_topic("primary"), ARM_TOPIC, GRIPPER_TOPIC):
            session.wait_connected(topic)
        # An instant is shown once; that the node is in the graph does not yet mean that it would hear it.
        shown = (self._joints, self._images)
        session.wait_until(lambda: all(p.get_subscription_count() for p in shown), "the node to be connected")

    def _keeper(self, part: str) -> Callable[[JointTrajectory], None]:
        arm = list(CRANE_X7.joint_names[:7]) if part == "arm" else [CRANE_X7.joint_names[7]]

        def keep(message: JointTrajectory) -> None:
            times, positions = trajectory_points(message, arm)
            self.commands[part].append((stamp_ns(message.header), int(times[-1]), positions[-1]))

        return keep

    def show(self, stamp: int, state: np.ndarray = HOME, *, camera: bool = True) -> None:
        self._joints.publish(joint_state_message(CRANE_X7, stamp, state, np.zeros(8)))
        if camera:
            self._images.publish(rgb_to_image(np.zeros((4, 4, 3), np.uint8), stamp, "camera"))

    def answered(self, stamp: int) -> np.ndarray:
        """float64 [8]: the command of the instant, once both parts have come."""

        def both() -> bool:
            return all(any(at == stamp for at, _, _ in self.commands[part]) for part in self.commands)

        self.session.wait_until(both, f"the answer to {stamp / 1e9:.3f} s")
        parts = [next(p for at, _, p in self.commands[part] if at == stamp) for part in ("arm", "gripper")]
        return np.concatenate(parts)


def test_a_real_model_drives_the_simulated_arm_in_lockstep(tmp_path: Path, tiny_checkpoint: Path) -> None:
    sim = with_parameters(SIM, lockstep=True, image_width=64, image_height=48, max_steps=11)
    inference = with_parameters(
        INFERENCE, lockstep=True, model_path=str(tiny_checkpoint), device="cpu", autostart=False
    )
    with graph(tmp_path / "log", sim, inference) as session:
        assert session.status("vla_inference")["state"] == "stopped"
        session.reset_simulator(5)
        session.call_trigger("vla_inference/start")
        ends = [session.wait_episode_end()]
        session.reset_simulator(5)
        ends.append(session.wait_episode_end())
        assert [(end["steps"], end["truncated"], end["success"]) for end in ends] == [(11, True, False)] * 2
        # The last instant of an episode is answered too, although nobody steps on it.
        status = session.wait_status(
            "vla_inference", lambda s: s["counts"]["commands"] >= 24, "the answers to 2 x 12 instants"
        )
        assert status["state"] == "running"
        assert status["latency_s"] > 0
        # 12 instants in chunks of the tiny model's 4 actions.
        assert status["counts"]["inferences"] == 2 * 3
        session.call_trigger("vla_inference/stop")
        assert session.wait_status("vla_inference", lambda s: s["state"] == "stopped", "the stop")


def test_lockstep_holds_on_nan_and_errors_waits_for_a_missing_picture_and_goes_on_after(
    tmp_path: Path, stand_in: NodeSpec
) -> None:
    node = with_parameters(stand_in, lockstep=True)
    with graph(tmp_path / "log", node) as session:
        arm = Arm(session)
        instructions = session.node.create_publisher(String, "vla_inference/instruction", 1)
        session.wait_connected("vla_inference/instruction")

        def instruct(text: str) -> None:
            instructions.publish(String(data=text))
            session.wait_status("vla_inference", lambda s: s["instruction"] == text, f"instruction {text}")

        stamp = 1_000_000_000
        moves = []

        def step() -> None:
            nonlocal stamp
            arm.show(stamp)
            moves.append(round(float(arm.answered(stamp)[0]), 4))
            stamp += PERIOD

        for _ in range(4):
            step()
        assert moves == [0.01, 0.02, 0.03, 0.04]
        instruct("nan")
        step()
        assert moves[-1] == 0.04
        wait_held(session, "not finite for crane_x7_upper_arm_revolute_part_twist_joint")
        instruct("raise")
        step()
        assert moves[-1] == 0.04
        wait_held(session, "the policy failed: RuntimeError: out of ideas")
        instruct("pick up")
        step()
        assert moves[-1] == 0.05
        arm.show(stamp, camera=False)
        wait_for(session, "waiting", "no camera primary of 1.7")
        assert arm.commands["arm"][-1][0] < stamp
        step()
        assert moves[-1] == 0.06
        # The simulator's clock jumps: plan and last command are dropped, the measured state counts.
        stamp += 1_000_000_000
        arm.show(stamp, HOME + np.float32(0.1) * np.eye(8, dtype=np.float32)[0])
        assert arm.answered(stamp)[0] == pytest.approx(0.11)
        assert len(arm.commands["arm"]) == len({at for at, _, _ in arm.commands["arm"]})
        assert {duration for _, duration, _ in arm.commands["gripper"]} == {PERIOD}
        # Another rate than the policy's is an error that names both.
        arm.show(stamp + PERIOD // 2)
        with pytest.raises(NodeEndedError, match="observations come at 20 Hz, but the policy was trained at 10 Hz"):
            session.wait_until(lambda: False, "the end of the node")


def wait_for(session: Session, state: str, reason: str) -> None:
    def reached(status: Json) -> bool:
        return status["state"] == state and reason in str(status["hold_reason"])

    session.wait_status("vla_inference", reached, f"{state} because of {reason}")


def wait_held(session: Session, reason: str) -> None:
    wait_for(session, "holding", reason)


def test_lockstep_says_that_it_waits_for_a_policy_that_hangs_and_ends_all_the_same(
    tmp_path: Path, stand_in: NodeSpec
) -> None:
    with graph(tmp_path / "log", with_parameters(stand_in, lockstep=True, instruction="pick up")) as session:
        arm = Arm(session)
        instructions = session.node.create_publisher(String, "vla_inference/instruction", 1)
        session.wait_connected("vla_inference/instruction")
        instructions.publish(String(data="hang"))
        session.wait_status("vla_inference", lambda s: s["instruction"] == "hang", "the instruction")
        arm.show(1_000_000_000)
        wait_for(session, "waiting", "the policy's answer to 1.000 s")
        session.call_trigger("vla_inference/stop")
        session.wait_status("vla_inference", lambda s: s["state"] == "stopped", "the stop")
    assert arm.commands == {"arm": [], "gripper": []}


def test_in_real_time_a_dead_camera_and_a_policy_that_hangs_hold_the_arm(tmp_path: Path, stand_in: NodeSpec) -> None:
    with graph(tmp_path / "log", with_parameters(stand_in, max_age=0.4)) as session:
        arm = Arm(session)
        clock = session.node.get_clock()
        camera = True
        session.node.create_timer(0.05, lambda: arm.show(clock.now().nanoseconds, camera=camera))

        def moved() -> bool:
            return any(position[0] > 0.01 for _, _, position in arm.commands["arm"])

        def still() -> bool:
            last = [position[0] for _, _, position in arm.commands["arm"][-10:]]
            return len(last) == 10 and len(set(last)) == 1

        session.wait_until(moved, "the arm's motion")
        assert {(stamp, duration) for stamp, duration, _ in arm.commands["arm"]} == {(AT_ONCE, 0)}
        camera = False
        wait_held(session, "camera primary is")
        session.wait_until(still, "the held target")
        camera = True
        arm.commands["arm"].clear()
        session.wait_until(moved, "the motion with the camera")
        instructions = session.node.create_publisher(String, "vla_inference/instruction", 1)
        session.wait_connected("vla_inference/instruction")
        instructions.publish(String(data="hang"))
        wait_held(session, "the policy has not answered for")
        session.wait_until(still, "the held target")
        session.call_trigger("vla_inference/stop")
        session.wait_status("vla_inference", lambda s: s["state"] == "stopped", "the stop")
