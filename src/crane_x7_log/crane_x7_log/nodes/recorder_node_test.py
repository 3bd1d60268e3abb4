"""The recorder node over real DDS, against a robot in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rclpy
import yaml
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image, JointState

from crane_x7_log.nodes.fake_robot_test import (
    INSTRUCTION,
    MS,
    N_LOCKSTEP,
    START_NS,
    image_at,
    state_at,
    target_at,
)
from crane_x7_log.nodes.recorder_node import RecorderNode, Settings
from crane_x7_vla.data.episode import (
    EpisodeFile,
    EpisodeMetadata,
    decode_jpeg,
    encode_jpeg,
    list_episodes,
    list_partials,
    read_episode,
)
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.nodes.domain import environment, take_domain
from crane_x7_vla.nodes.messages import image_to_rgb, joint_state_message, publisher_qos, rgb_to_image
from crane_x7_vla.robot import CRANE_X7

PACKAGE = Path(__file__).parents[2]
LIMIT_S = 180


@contextmanager
def recorder(tmp_path: Path, env: dict[str, str], **parameters: object) -> Iterator[subprocess.Popen[str]]:
    """The node with its parameter file; what it logs goes to recorder.log."""
    arguments = ["--ros-args", "--params-file", str(PACKAGE / "crane_x7_log" / "params" / "recorder.yaml")]
    parameters = {"output_dir": tmp_path / "data", "camera_names": "[primary, wrist]", "timeout_s": 60.0} | parameters
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={value}"]
    with (tmp_path / "recorder.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "crane_x7_log.nodes.recorder_node", *arguments],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(LIMIT_S)
            sys.stdout.write((tmp_path / "recorder.log").read_text())


def fake_robot(scenario: str, env: dict[str, str], node: subprocess.Popen[str]) -> dict[str, object]:
    """What the robot says of the scenario; fails at once when the node ends in the middle."""
    with subprocess.Popen(
        [sys.executable, "-m", "crane_x7_log.nodes.fake_robot_test", scenario],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as robot:
        try:
            while True:
                try:
                    output, errors = robot.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    assert node.poll() is None, "the recorder ended"
        finally:
            robot.kill()
    assert robot.returncode == 0, errors
    return json.loads(output)


@pytest.fixture
def env(tmp_path: Path) -> Iterator[dict[str, str]]:
    with take_domain() as domain:
        yield os.environ | environment(domain.number) | {"ROS_LOG_DIR": str(tmp_path / "log")}


def metadata_of(path: Path) -> EpisodeMetadata:
    metadata = EpisodeFile(path).metadata
    assert metadata is not None
    return metadata


def assert_same_picture(jpeg: bytes, camera: str, stamp_ns: int) -> None:
    """Recorded = published, but for what JPEG costs; the square's colour would tell red from blue."""
    decoded, published = decode_jpeg(jpeg), image_at(camera, stamp_ns)
    assert decoded.shape == published.shape
    assert np.abs(decoded[12:20, 12:20].astype(int) - published[12:20, 12:20]).max() <= 4
    assert np.abs(decoded.astype(int) - published).mean() <= 2


@pytest.mark.ros
def test_lockstep_over_dds_files_equal_what_was_published(tmp_path: Path, env: dict[str, str]) -> None:
    with recorder(tmp_path, env, lockstep="true") as node:
        assert "2 nodes publish /joint_states" in str(fake_robot("second_arm", env, node)["refused"])
        last = fake_robot("lockstep", env, node)
        node.send_signal(signal.SIGTERM)
        assert node.wait(LIMIT_S) == 0
    assert last["outcome"] == "saved"
    assert last["success"] is True
    episode = read_episode(Path(str(last["path"])))
    stamps = START_NS + 100 * MS * np.arange(N_LOCKSTEP)
    np.testing.assert_array_equal(np.round(episode.stamp * 1e9), stamps)
    assert episode.commanded is not None
    for k, stamp_ns in enumerate(stamps.tolist()):
        np.testing.assert_array_equal(episode.state[k], state_at(stamp_ns))
        np.testing.assert_array_equal(episode.action[k], state_at(stamp_ns + 100 * MS))
        np.testing.assert_array_equal(episode.commanded[k], target_at(stamp_ns))
        for camera in ("primary", "wrist"):
            assert_same_picture(episode.images[camera][k], camera, stamp_ns)
    metadata = metadata_of(episode.path)
    assert metadata.instruction == INSTRUCTION, "latched at the start"
    assert metadata.seed == 11
    assert metadata.success is True
    assert set(metadata.missed.values()) == {0}
    assert metadata.cameras["wrist"].topic == "/camera_wrist/color/image_raw"


@pytest.mark.ros
def test_realtime_over_dds_discard_save_and_interruption(tmp_path: Path, env: dict[str, str]) -> None:
    # On a busy machine messages come late and best effort loses some; what is recorded must be right all the same.
    with recorder(tmp_path, env, joint_max_age_s=30.0, camera_max_age_s=30.0) as node:
        result = fake_robot("realtime", env, node)
        node.send_signal(signal.SIGINT)
        assert node.wait(LIMIT_S) == 0
    discarded, saved = result["discarded"], result["saved"]
    assert isinstance(discarded, dict)
    assert isinstance(saved, dict)
    assert discarded["outcome"] == "discarded"
    episode = read_episode(Path(saved["path"]))
    assert episode.path.parent.name == "episode_0", "the number of the discarded one"
    file = EpisodeFile(episode.path)
    assert len(file) == saved["steps"] >= 20
    np.testing.assert_allclose(np.diff(episode.stamp), 0.1, atol=1e-6)
    for k in range(len(file)):
        step = file.step(k)
        assert step.state_stamp is not None
        np.testing.assert_array_equal(step.state, state_at(round(step.state_stamp * 1e9)))
        for camera, stamp in step.image_stamps.items():
            assert_same_picture(step.images[camera], camera, round(stamp * 1e9))
    assert episode.commanded is not None

    (partial,) = list_partials(tmp_path / "data")
    assert str(partial) == f"{result['left']}.partial"
    log = (tmp_path / "recorder.log").read_text()
    command = re.search(r"recover it with: python (-m crane_x7_log.episodes recover .*)", log)
    assert command is not None, log
    subprocess.run([sys.executable, *command[1].split()], env=env, check=True, timeout=LIMIT_S, capture_output=True)
    recovered = metadata_of(Path(str(result["left"])))
    assert recovered.recovered
    assert recovered.n_steps >= 15


@pytest.mark.ros
def test_a_node_killed_in_the_middle_leaves_what_was_saved_and_an_episode_to_recover(
    tmp_path: Path, env: dict[str, str]
) -> None:
    root = tmp_path / "data"
    with recorder(tmp_path, env, joint_max_age_s=30.0, camera_max_age_s=30.0) as node:
        result = fake_robot("interrupted", env, node)
        node.kill()
        assert node.wait(LIMIT_S) == -signal.SIGKILL
    saved, left = result["saved"], Path(str(result["left"]))
    assert isinstance(saved, dict)
    # Nothing half looks whole: readers see the saved episode alone.
    assert [str(path) for path in list_episodes(root)] == [saved["path"]]
    assert len(read_episode(Path(saved["path"])).state) == saved["steps"] >= 20
    assert sorted(path.name for path in left.parent.iterdir()) == [
        "episode_1.tfrecord.partial",
        "episode_metadata.json.partial",
    ]

    done = subprocess.run(
        [sys.executable, "-m", "crane_x7_log.episodes", "recover", str(root)],
        env=env,
        check=True,
        timeout=LIMIT_S,
        capture_output=True,
        text=True,
    )
    recovered = read_episode(left)
    assert done.stdout == f"recovered {len(recovered.state)} steps: {left}\n"
    # 15 were there; what the disk was given less than a second ago may be gone.
    assert len(recovered.state) >= 15 - 10
    np.testing.assert_allclose(np.diff(recovered.stamp), 0.1, atol=1e-6)
    np.testing.assert_array_equal(recovered.action[:-1], recovered.state[1:])
    assert metadata_of(left).recovered
    assert list_partials(root) == []


@pytest.mark.ros
def test_a_wrong_parameter_ends_the_node_with_one_line(tmp_path: Path, env: dict[str, str]) -> None:
    with recorder(tmp_path, env, commanded="maybe") as node:
        assert node.wait(LIMIT_S) == 2
    log = (tmp_path / "recorder.log").read_text()
    assert "recorder: commanded is 'maybe', expected one of auto, required, off\n" in log
    assert "Traceback" not in log


@pytest.mark.ros
@pytest.mark.parametrize(
    ("lockstep", "lacks"),
    [
        ("true", "the service lift/next"),
        ("false", r"nothing from primary \(/camera/color/image_raw\) for \d s"),
    ],
)
def test_a_recorder_that_saw_every_source_says_what_else_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], lockstep: str, lacks: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    values = {"output_dir": str(tmp_path / "data"), "instruction": "pick", "lockstep": lockstep, "timeout_s": "60.0"}
    # In real time with nobody to press start, in lockstep by itself.
    values["num_episodes"] = "1" if lockstep == "true" else "0"
    rclpy.init(args=["--ros-args", *(word for pair in values.items() for word in ("-p", ":=".join(pair)))])
    node, robot = RecorderNode(), rclpy.create_node("robot")
    executor = SingleThreadedExecutor()
    try:
        executor.add_node(node)
        states = robot.create_publisher(JointState, "/joint_states", publisher_qos())
        images = robot.create_publisher(Image, "/camera/color/image_raw", publisher_qos())
        deadline = time.monotonic() + LIMIT_S
        sent = False
        while not re.search(lacks, str(node.lacks())):
            assert time.monotonic() < deadline, node.lacks()
            if not sent and states.get_subscription_count() == images.get_subscription_count() == 1:
                states.publish(joint_state_message(CRANE_X7, START_NS, np.zeros(8), np.zeros(8)))
                images.publish(rgb_to_image(image_at("primary", START_NS), START_NS, "camera"))
                sent = True
            executor.spin_once(timeout_sec=0.05)
        assert sent
    finally:
        executor.shutdown()
        node.destroy_node()
        robot.destroy_node()
        rclpy.shutdown()


def test_topics_of_cameras_are_the_usual_ones_or_one_for_each() -> None:
    usual = Settings(camera_names=("primary", "wrist"), camera_topics=("",)).topics()
    assert (usual["primary"], usual["wrist"]) == ("camera/color/image_raw", "camera_wrist/color/image_raw")
    given = Settings(camera_names=("primary", "wrist"), camera_topics=("a", "b")).topics()
    assert (given["primary"], given["wrist"]) == ("a", "b")
    with pytest.raises(ConfigError, match="camera_names has 2 entries and camera_topics 1; give one topic for each"):
        Settings(camera_names=("primary", "wrist"), camera_topics=("a",)).topics()


def test_a_recorded_picture_replayed_through_the_nodes_conversions_is_the_same() -> None:
    rng = np.random.default_rng(0)
    recorded = decode_jpeg(encode_jpeg(rng.integers(0, 256, (48, 64, 3), np.uint8)))
    np.testing.assert_array_equal(image_to_rgb(rgb_to_image(recorded, 0, "camera")), recorded)
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 255
    live = image_to_rgb(rgb_to_image(red, 0, "camera"))
    assert np.abs(decode_jpeg(encode_jpeg(live)).astype(int) - live).max() <= 2


def test_the_parameter_file_and_the_launch_arguments_are_the_nodes_settings() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    in_file = yaml.safe_load((PACKAGE / "crane_x7_log/params/recorder.yaml").read_text())["/**"]["ros__parameters"]
    assert in_file == {name: defaults[name] for name in in_file}
    launch = (PACKAGE / "launch/recorder.launch.py").read_text()
    arguments = set(re.findall(r'typed\("(\w+)"', launch)) - {"use_sim_time"}
    assert arguments | set(in_file) == set(defaults)
    assert not arguments & set(in_file), "one place for each default"
    assert "on_exit=end_with_node" in launch
    for name, default in re.findall(r'DeclareLaunchArgument\(\s*"(\w+)", default_value="([^"]*)"', launch):
        if name in arguments:
            value = yaml.safe_load(default) if name != "instruction" else default
            if isinstance(value, list):
                value = tuple(item for item in value if item)
            assert value == defaults[name], name
