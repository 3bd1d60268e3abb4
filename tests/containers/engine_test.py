"""The Dockerfiles and the compose file on a real Docker engine, from the build to an arm that moves.

What these tests do not see: the public ROS and CUDA images, Ubuntu's packages, a GPU, cameras, an arm.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from crane_x7_log.checks import check_episode
from crane_x7_vla.data.episode import EpisodeFile, list_partials, recover_episode
from crane_x7_vla.data.metadata import METADATA_NAME, read_metadata
from tests.containers.checkout import ROOT, USER, Checkout
from tests.containers.engine import Engine, clean_stale

EPISODES = 2
INSTRUCTION = "pick up the red cube"
TRAIN_STEPS = 3
MODEL = "outputs/tiny_merged"
DATA = "data/tfrecord_logs"

# Resets the simulated arm, waits for its verdict, and prints it with how far the arm went, rad.
TRIALS = """
import json
import os

import numpy as np
from sensor_msgs.msg import JointState

from crane_x7_bringup.session import Session
from crane_x7_vla.nodes.messages import joint_state_positions, sensor_qos
from crane_x7_vla.robot import CRANE_X7

states = []
with Session(int(os.environ["ROS_DOMAIN_ID"])) as session:
    keep = lambda message: states.append(joint_state_positions(message, CRANE_X7))
    session.subscribe(JointState, "joint_states", keep, sensor_qos(lockstep=False))
    session.status("vla_inference")
    for seed in (1_000_000, 1_000_001):
        session.reset_simulator(seed)
        states.clear()
        end = session.wait_episode_end()
        print(json.dumps({**end, "moved": float(np.ptp(np.stack(states), axis=0).max())}))
"""


def recordings(checkout: Checkout, folder: str = DATA) -> list[Path]:
    return sorted((checkout.folder / folder).glob("episode_*/*.tfrecord"))


@pytest.fixture(scope="module")
def recorded(images: Checkout) -> Checkout:
    """The checkout with recordings of the scripted expert, made by ``--profile sim --profile log up``."""
    images.up("sim", "log", NUM_EPISODES=str(EPISODES), EPISODE_SECONDS="10", VLA_INSTRUCTION=INSTRUCTION)
    assert images.wait_ended("recorder", timeout=120.0) == 0, images.logs()
    images.compose("--profile", "sim", "--profile", "log", "stop")
    return images


@pytest.fixture(scope="module")
def trained(recorded: Checkout) -> Checkout:
    """The checkout with a model that was trained on the recordings, in the training image, for a few steps."""
    shipped = "src/crane_x7_bringup/crane_x7_bringup"
    base = f"/workspace/{shipped}/models/openvla-oft-tiny"
    train = recorded.run(
        "train",
        *("python", "-m", "crane_x7_vla.training.cli", "train"),
        *("--config", f"/workspace/{shipped}/demo/training.yaml", "--model-id", base),
        *("--experiment-name", "tiny", "--batch-size", "4", "--max-steps", str(TRAIN_STEPS)),
    )
    assert train.returncode == 0, train.stdout + train.stderr
    merge = recorded.run(
        "train",
        *("python", "-m", "crane_x7_vla.scripts.merge_lora", "--base_model", base),
        *("--adapter_path", "/workspace/outputs/tiny/checkpoint-final/lora_adapters"),
        *("--output_path", f"/workspace/{MODEL}"),
    )
    assert merge.returncode == 0, merge.stdout + merge.stderr
    return recorded


def test_recordings_of_the_simulated_arm_are_whole_and_the_users(recorded: Checkout) -> None:
    paths = recordings(recorded)
    assert len(paths) == EPISODES
    for path in paths:
        assert check_episode(path) == []
        metadata = read_metadata(path.parent / METADATA_NAME)
        assert metadata is not None
        assert metadata.instruction == INSTRUCTION
        assert metadata.success is True
    assert list_partials(recorded.folder / DATA) == []
    for path in (recorded.folder / "data").rglob("*"):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (USER, USER), path


def test_tensorflow_reads_the_recordings(recorded: Checkout) -> None:
    tf = importlib.import_module("tensorflow")
    joints = tf.io.FixedLenFeature([8], tf.float32)
    picture = tf.io.FixedLenFeature([], tf.string)
    spec = {
        "observation/state": joints,
        "action": joints,
        "observation/image": picture,
        "observation/image_wrist": picture,
        "language_instruction": tf.io.FixedLenFeature([], tf.string),
    }
    for path in recordings(recorded):
        dataset = tf.data.TFRecordDataset(str(path)).map(lambda record: tf.io.parse_single_example(record, spec))
        records = list(dataset.as_numpy_iterator())
        assert len(records) == len(EpisodeFile(path).arrays().state)
        assert tf.io.decode_jpeg(records[0]["observation/image"]).shape == (128, 128, 3)
        assert records[0]["language_instruction"].decode() == INSTRUCTION


def test_a_trained_model_is_the_users(trained: Checkout) -> None:
    paths = list((trained.folder / "outputs").rglob("*"))
    assert trained.folder / MODEL / "config.json" in paths
    assert {path.lstat().st_uid for path in paths} == {USER}


def test_a_trained_model_drives_the_simulated_arm_and_the_simulator_judges(trained: Checkout) -> None:
    trained.up("vla-sim", VLA_MODEL_PATH=f"/workspace/{MODEL}", VLA_DEVICE="cpu")
    ends = [json.loads(line) for line in trained.python("vla-sim", TRIALS).splitlines()]
    assert [end["seed"] for end in ends] == [1_000_000, 1_000_001]
    for end in ends:
        # Three steps of training make no skilled policy; what counts is that it moves and is judged.
        assert end["success"] is end["terminated"]
        assert end["success"] or end["truncated"]
        assert end["moved"] > 0.02
    trained.compose("--profile", "vla-sim", "stop")
    services = trained.services()
    assert {name: services[name].code for name in ("vla-sim", "vla-sim-arm")} == {"vla-sim": 0, "vla-sim-arm": 0}


@pytest.mark.parametrize(
    ("how", "code"),
    [(("stop",), 0), (("kill", "--signal", "SIGINT"), 0), (("kill", "--signal", "SIGKILL"), 137)],
    ids=["stop", "SIGINT", "killed"],
)
def test_a_recorder_that_is_ended_leaves_no_half_episode_that_looks_whole(
    images: Checkout, how: tuple[str, ...], code: int
) -> None:
    known = set(recordings(images))
    images.up("sim", "log", NUM_EPISODES="1000", EPISODE_SECONDS="60")
    root = images.folder / DATA
    try:
        # A second's worth of records is written, more are on their way.
        images.wait(lambda: any(path.stat().st_size > 20_000 for path in list_partials(root)), "a recording")
        images.compose(*how, "recorder")
        assert images.wait_ended("recorder") == code, images.logs("recorder")
    finally:
        images.compose("--profile", "sim", "--profile", "log", "down")
    for path in set(recordings(images)) - known:
        assert check_episode(path) == []
        assert (path.parent / METADATA_NAME).exists()
    for partial in list_partials(root):
        whole = recover_episode(partial)
        assert len(EpisodeFile(whole).arrays().state) > 0


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_a_wrong_model_path_is_one_line(images: Checkout) -> None:
    done = images.run("vla", VLA_MODEL_PATH="/workspace/outputs/nothing", VLA_DEVICE="cpu")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert "/workspace/outputs/nothing" in last_line(done.stderr)


def test_an_adapter_folder_gives_the_merge_command(trained: Checkout) -> None:
    adapters = "/workspace/outputs/tiny/checkpoint-final/lora_adapters"
    done = trained.run("vla", VLA_MODEL_PATH=adapters, VLA_DEVICE="cpu")
    assert done.returncode == 2
    assert "Failed to load VLA model" in done.stderr
    assert f"crane_x7_vla.scripts.merge_lora --adapter_path {adapters}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_to_is_one_line(images: Checkout) -> None:
    os.chown(images.folder / "data", 0, 0)
    try:
        done = images.run("recorder", VLA_DATA_ROOT="/workspace/data/elsewhere")
    finally:
        os.chown(images.folder / "data", USER, USER)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert "/workspace/data" in last_line(done.stderr)


def test_a_missing_device_is_named(images: Checkout) -> None:
    done = images.compose("--profile", "real", "up", "--no-build", "cameras", check=False)
    assert done.returncode != 0
    assert "no such file or directory" in done.stderr


def processes_naming(folder: Path) -> list[str]:
    """Command lines with ``folder`` in them."""
    lines: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines.append(path.read_text(errors="replace"))
    return [line for line in lines if str(folder) in line]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The path of a socket has 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="x7_") as folder:
        yield Path(folder)


def test_what_a_killed_run_leaves_is_removed_by_the_next(engine: Engine, short_folder: Path) -> None:
    folder = short_folder / "crane_x7_engine_killed"
    folder.mkdir()
    (folder / "tools").symlink_to(engine.tools)
    code = (
        "import os, pathlib, sys\n"
        "from tests.containers.engine import Engine\n"
        "engine = Engine(pathlib.Path(sys.argv[1]))\n"
        "engine.start()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, folder], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert clean_stale(short_folder) == [folder]
    assert not folder.exists()
    assert processes_naming(folder) == []
