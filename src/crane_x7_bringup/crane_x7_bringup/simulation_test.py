"""The simulated arm and the expert as real nodes: lockstep is exact, faults are said, other domains do not disturb."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from crane_x7_bringup.profiles import EXPERT, SIM
from crane_x7_bringup.session import Session
from crane_x7_bringup.supervisor import NodeEndedError, NodeSpec, Supervisor
from crane_x7_vla.errors import DataError
from crane_x7_vla.nodes.domain import take_domain
from crane_x7_vla.nodes.messages import (
    command_qos,
    image_to_rgb,
    joint_state_positions,
    sensor_qos,
    stamp_ns,
    trajectory_message,
)
from crane_x7_vla.protocol import ARM_TOPIC
from crane_x7_vla.robot import CRANE_X7
from lift import make_env
from lift.expert import DISTURBANCE, PickUpExpert
from lift.nodes.topics import camera_topic
from lift.tasks.pick_up import PICK_UP

pytestmark = pytest.mark.ros


def spec(node: NodeSpec, **parameters: object) -> NodeSpec:
    return NodeSpec(
        name=node.name,
        package=node.package,
        module=node.module,
        executable=node.executable,
        params_file=node.params_file,
        parameters={"lockstep": True, **parameters},
    )


@contextmanager
def stack(log_dir: Path, *nodes: NodeSpec) -> Iterator[Session]:
    with (
        take_domain() as domain,
        Supervisor(nodes, domain=domain.number, log_dir=log_dir) as supervisor,
        Session(domain.number, watch=supervisor.check) as session,
    ):
        yield session


def directly(seed: int, disturbance: float) -> list[np.ndarray]:
    """The states of the same episode in this process."""
    env = make_env("mujoco", PICK_UP.env_id, cameras=(), disturbance=disturbance)
    expert = PickUpExpert(PICK_UP)
    (observation,) = env.reset(np.array([seed]))
    states, commanded = [observation.state], observation.state
    while True:
        commanded = expert.act(observation.state, env.task_state[0], commanded)
        result = env.step(commanded[None])
        (observation,) = result.observations
        states.append(observation.state)
        if result.terminated[0] or result.truncated[0]:
            assert result.success[0]
            return states


class Watcher:
    """What the simulated arm shows, by stamp."""

    def __init__(self, session: Session) -> None:
        self.states: dict[int, np.ndarray] = {}
        self.images: dict[int, np.ndarray] = {}
        session.subscribe(JointState, "joint_states", self._on_joints, sensor_qos(lockstep=True))
        session.subscribe(Image, camera_topic("primary"), self._on_image, sensor_qos(lockstep=True))

    def _on_joints(self, message: JointState) -> None:
        self.states[stamp_ns(message.header)] = joint_state_positions(message, CRANE_X7)

    def _on_image(self, message: Image) -> None:
        self.images[stamp_ns(message.header)] = image_to_rgb(message)


def test_an_episode_over_ros_is_the_episode_bit_for_bit_whatever_runs_in_another_domain(tmp_path: Path) -> None:
    other = stack(tmp_path / "other", spec(SIM, cameras=[], auto_reset=True), spec(EXPERT))
    sim = spec(SIM, cameras=["primary"], image_width=40, image_height=30, disturbance=DISTURBANCE)
    with other, stack(tmp_path / "own", sim, spec(EXPERT, autostart=False)) as session:
        watcher = Watcher(session)
        session.wait_connected("joint_states", publishers=1, subscribers=2)
        # The simulator shows the first instant again until somebody answers it.
        session.wait_until(lambda: bool(watcher.images), "the first picture")
        session.call_trigger("expert/start")
        session.wait_episode_end()
        assert session.node.count_publishers("joint_states") == 1
        last = 0
        told: list[str] = []
        for seed in (7, 8, 7):
            begin = session.reset_simulator(seed)
            assert begin - last >= 1_000_000_000
            end = session.wait_episode_end()
            last = end["stamp_ns"]
            expected = directly(seed, DISTURBANCE)
            stamps = [begin + k * 100_000_000 for k in range(len(expected))]
            session.wait_until(lambda stamps=stamps: stamps[-1] in watcher.images, "the last picture")
            assert end["seed"] == seed
            assert end["success"]
            assert end["steps"] == len(expected) - 1
            assert last == stamps[-1]
            for stamp, state in zip(stamps, expected, strict=True):
                np.testing.assert_array_equal(watcher.states[stamp], state)
                assert watcher.images[stamp].shape == (30, 40, 3)
            told.append(f"episode of seed {seed}: success after {end['steps']} steps")
        assert len({picture.tobytes() for picture in watcher.images.values()}) > 10
    # A person who records by hand reads it in the terminal of the nodes.
    log = (tmp_path / "own" / "sim.log").read_text()
    assert all(line in log for line in told)


def test_a_command_that_does_not_come_ends_the_simulator_with_one_line(tmp_path: Path) -> None:
    with stack(tmp_path, spec(SIM, cameras=[], command_timeout=0.5)) as session:
        seen: list[int] = []
        session.subscribe(JointState, "joint_states", lambda m: seen.append(stamp_ns(m.header)), sensor_qos(True))
        commands = session.node.create_publisher(JointTrajectory, ARM_TOPIC, command_qos())
        session.wait_connected(ARM_TOPIC)
        # Nobody has driven yet, so the first instant is waited for as long as it takes, and shown again.
        session.wait_until(lambda: len(seen) >= 2, "the first instant twice")
        assert len(set(seen)) == 1
        names = [CRANE_X7.joint_names[i] for i in CRANE_X7.arm_indices]
        home = np.array(CRANE_X7.home)[None, :7]
        commands.publish(trajectory_message(["other", *names[1:]], seen[0], [1], home))
        commands.publish(trajectory_message(names, seen[0] - 1, [100_000_000], home))
        commands.publish(trajectory_message(names[::-1], seen[0], [100_000_000], home[:, ::-1]))
        with pytest.raises(
            NodeEndedError, match=r"sim: lockstep: no gripper command stamped 1\.0{9} s came .* 0\.5 s"
        ) as end:
            session.wait_until(lambda: False, "the time-out")
        assert end.value.code == 2
    log = (tmp_path / "sim.log").read_text()
    assert log.count("arm trajectory ignored: trajectory is for other joints") == 1
    assert "Traceback" not in log


def test_an_arm_that_nobody_drives_is_not_waited_for_to_the_end(tmp_path: Path) -> None:
    with stack(tmp_path, spec(SIM, cameras=[])) as session:
        session.reset_simulator(3)
        with pytest.raises(TimeoutError, match=r"waited 1\.5 s for the simulated arm to move on; does the node that"):
            session.wait_episode_end(standstill=1.5)


def test_a_negative_seed_is_refused_at_the_reset(tmp_path: Path) -> None:
    with stack(tmp_path, spec(SIM, cameras=[])) as session, pytest.raises(DataError, match="must be 0 or more, got -1"):
        session.reset_simulator(-1)


def test_real_time_follows_the_clock_and_any_trajectory(tmp_path: Path) -> None:
    with stack(tmp_path, spec(SIM, lockstep=False, cameras=[], publish_clock=False)) as session:
        states: dict[int, np.ndarray] = {}
        session.subscribe(
            JointState,
            "joint_states",
            lambda m: states.update({stamp_ns(m.header): joint_state_positions(m, CRANE_X7)}),
            sensor_qos(lockstep=False),
        )
        commands = session.node.create_publisher(JointTrajectory, ARM_TOPIC, command_qos())
        session.wait_connected(ARM_TOPIC)
        session.wait_until(lambda: len(states) > 2, "joint states")
        now = session.node.get_clock().now().nanoseconds
        assert abs(max(states) - now) < 2_000_000_000, "stamps are the system's time"
        before = states[max(states)][:7]
        goal = before + np.float32(0.2) * np.array([1, 0, 0, 0, 0, 0, 1], np.float32)
        names = [CRANE_X7.joint_names[i] for i in CRANE_X7.arm_indices]
        points = np.linspace(before, goal, 4)[1:]
        times = [150_000_000, 250_000_000, 400_000_000]
        commands.publish(trajectory_message(names, 0, times, points))
        session.wait_until(lambda: abs(states[max(states)][0] - goal[0]) < 0.03, "the arm at its goal")
        stamps = sorted(states)
        assert all(b > a for a, b in itertools.pairwise(stamps))


def test_in_system_time_a_reset_shows_nothing_before_its_time_and_heeds_no_command_for_the_scene_before(
    tmp_path: Path,
) -> None:
    with stack(tmp_path, spec(SIM, lockstep=False, cameras=[], publish_clock=False)) as session:
        states: dict[int, np.ndarray] = {}
        ahead: list[int] = []
        clock = session.node.get_clock()

        def keep(message: JointState) -> None:
            states[stamp_ns(message.header)] = joint_state_positions(message, CRANE_X7)
            ahead.append(stamp_ns(message.header) - clock.now().nanoseconds)

        session.subscribe(JointState, "joint_states", keep, sensor_qos(lockstep=False))
        commands = session.node.create_publisher(JointTrajectory, ARM_TOPIC, command_qos())
        session.wait_connected(ARM_TOPIC)
        session.wait_until(lambda: len(states) > 2, "joint states")
        begin = session.reset_simulator(3)
        names = [CRANE_X7.joint_names[i] for i in CRANE_X7.arm_indices]
        home = np.array(CRANE_X7.home)[None, :7]
        commands.publish(trajectory_message(names, 0, [0], home + 0.5))
        session.wait_until(lambda: sum(stamp >= begin for stamp in states) > 3, "the new scene")
        # Each instant is shown in the control period around it.
        assert max(ahead) <= 50_000_000
        assert begin - max(stamp for stamp in states if stamp < begin) >= 1_000_000_000
        stamps = list(states)
        assert stamps == sorted(stamps)
        first = min(stamp for stamp in stamps if stamp >= begin)
        np.testing.assert_allclose(states[stamps[-1]], states[first], atol=0.1)


def test_simulated_time_runs_between_the_instants_and_jumps_forward_at_a_reset(tmp_path: Path) -> None:
    from rosgraph_msgs.msg import Clock

    with stack(tmp_path, spec(SIM, lockstep=False, cameras=[], publish_clock=True)) as session:
        times: list[int] = []
        session.subscribe(
            Clock, "/clock", lambda m: times.append(m.clock.sec * 1_000_000_000 + m.clock.nanosec), sensor_qos(False)
        )
        session.wait_until(lambda: len(times) > 30, "the clock")
        begin = session.reset_simulator(3)
        session.wait_until(lambda: times[-1] > begin, "the clock after the reset")
        assert times == sorted(times)
        assert begin - max(t for t in times if t < begin) > 800_000_000
        assert len({t % 100_000_000 for t in times}) > 5


def test_a_graphics_or_task_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for parameters, line in (
        ({"env_id": "PickPlace"}, "unknown environment 'PickPlace'"),
        ({"seed": -1}, "parameter 'seed' must be 0 or more"),
        ({"cameras": ["ceiling"]}, "unknown camera 'ceiling'"),
    ):
        with (
            stack(tmp_path, spec(SIM, **parameters)) as session,
            pytest.raises(NodeEndedError, match=f"node sim ended with exit code 2: sim: {line}"),
        ):
            session.wait_until(lambda: False, "the end")
