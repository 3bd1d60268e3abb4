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
DATA = "data/tfrecord_logs"
TRAIN_STEPS = 3
MODEL = "outputs/tiny/checkpoint-final"
SHIPPED = "/workspace/vla/src/crane_x7_bringup/crane_x7_bringup"
TRAIN = (
    *("python", "-m", "crane_x7_vla.training.cli", "train"),
    *("--config", f"{SHIPPED}/demo/training.yaml", "--model-id", f"{SHIPPED}/models/openvla-oft-tiny"),
    *("--experiment-name", "tiny", "--batch-size", "4", "--max-steps", str(TRAIN_STEPS)),
)

# Resets the simulated arm twice, waits for its verdict, and prints it with how far the arm went, rad.
TRIALS = """
import json
import os

import numpy as np
from sensor_msgs.msg import JointState

from crane_x7_bringup.session import Session
from crane_x7_vla.nodes.messages import joint_state_positions, sensor_qos, stamp_ns
from crane_x7_vla.robot import CRANE_X7

states = []
with Session(int(os.environ["ROS_DOMAIN_ID"])) as session:
    session.subscribe(JointState, "joint_states", states.append, sensor_qos(lockstep=True))
    session.status("vla_inference")
    for seed in (1_000_000, 1_000_001):
        begin = session.reset_simulator(seed)
        end = session.wait_episode_end()
        path = [joint_state_positions(m, CRANE_X7) for m in states if begin <= stamp_ns(m.header) <= end["stamp_ns"]]
        print(json.dumps({**end, "moved": float(np.ptp(np.stack(path), axis=0).max())}))
"""


def recordings(checkout: Checkout) -> list[Path]:
    return sorted((checkout.folder / DATA).glob("episode_*/*.tfrecord"))


@pytest.fixture(scope="module")
def recorded(images: Checkout) -> Checkout:
    """The checkout with recordings of the scripted expert, made by the documented ``--profile sim --profile log up``.

    In lockstep, which loses no picture however busy the machine is.
    """
    variables = {"NUM_EPISODES": str(EPISODES), "RESET_SECONDS": "0", "LIFT_LOCKSTEP": "true"}
    words = ("--profile", "sim", "--profile", "log", "up", "--no-build", "--abort-on-container-exit")
    try:
        images.compose(*words, variables={**variables, "VLA_INSTRUCTION": INSTRUCTION}, timeout=180.0, check=False)
        codes = {name: ended.code for name, ended in images.services().items()}
        assert codes == {"recorder": 0, "sim": 0}, images.logs()
    finally:
        images.down()
    return images


@pytest.fixture(scope="module")
def trained(recorded: Checkout) -> Checkout:
    """The checkout with a model that was trained on the recordings, in the training image, for a few steps."""
    done = recorded.run("train", *TRAIN)
    assert done.returncode == 0, done.stdout + done.stderr
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
    assert (trained.folder / MODEL / "config.yaml").is_file()
    assert {path.lstat().st_uid for path in (trained.folder / "outputs").rglob("*")} == {USER}


def test_a_trained_model_drives_the_simulated_arm_and_the_simulator_judges(trained: Checkout) -> None:
    variables = {"VLA_MODEL_PATH": MODEL, "VLA_DEVICE": "cpu", "LIFT_LOCKSTEP": "true"}
    trained.up("vla-sim", variables=variables)
    ends = [json.loads(line) for line in trained.python("vla-sim", TRIALS).splitlines()]
    assert [end["seed"] for end in ends] == [1_000_000, 1_000_001]
    for end in ends:
        # Three steps of training make no skilled policy; what counts is that it moves and is judged.
        assert end["success"] is end["terminated"]
        assert end["success"] or end["truncated"]
        assert end["moved"] > 0.02
    trained.compose("--profile", "vla-sim", "stop")
    assert {name: ended.code for name, ended in trained.services().items()} == {"vla-sim": 0, "vla-sim-arm": 0}
    trained.down()


@pytest.fixture(scope="class")
def simulated(images: Checkout) -> Iterator[Checkout]:
    """The checkout with ``--profile sim`` up, in real time."""
    images.up("sim")
    yield images
    images.down()


def wait_recording(checkout: Checkout) -> None:
    """A second's worth of records is written, more are on their way."""
    root = checkout.folder / DATA
    checkout.wait(lambda: any(path.stat().st_size > 20_000 for path in list_partials(root)), "a recording")


def check_whole(path: Path) -> None:
    assert [finding for finding in check_episode(path) if finding.is_error] == []
    assert (path.parent / METADATA_NAME).exists()


class TestRecorderInRealTime:
    """One that ends by itself, is told when to stop, or is ended in the middle of an episode."""

    def test_an_episode_is_recorded_and_the_container_ends(self, simulated: Checkout) -> None:
        known = set(recordings(simulated))
        variables = {"NUM_EPISODES": "1", "EPISODE_SECONDS": "5", "RESET_SECONDS": "0"}
        simulated.up("log", only="recorder", variables=variables)
        assert simulated.wait_ended("recorder") == 0, simulated.logs("recorder")
        (path,) = set(recordings(simulated)) - known
        check_whole(path)

    def test_an_episode_that_is_stopped_by_a_call_is_whole(self, simulated: Checkout) -> None:
        known = set(recordings(simulated))
        simulated.up("log", only="recorder", variables={"NUM_EPISODES": "0"})
        simulated.call("recorder", "recorder/start")
        wait_recording(simulated)
        simulated.call("recorder", "recorder/stop")
        simulated.compose("--profile", "log", "stop", "recorder")
        assert simulated.wait_ended("recorder") == 0, simulated.logs("recorder")
        (path,) = set(recordings(simulated)) - known
        check_whole(path)
        assert list_partials(simulated.folder / DATA) == []

    @pytest.mark.parametrize(
        ("how", "code"),
        [(("stop",), 0), (("kill", "--signal", "SIGINT"), 0), (("kill", "--signal", "SIGKILL"), 137)],
        ids=["stop", "SIGINT", "killed"],
    )
    def test_no_half_episode_looks_whole(self, simulated: Checkout, how: tuple[str, ...], code: int) -> None:
        known = set(recordings(simulated))
        simulated.up("log", only="recorder", variables={"NUM_EPISODES": "1000", "RESET_SECONDS": "0"})
        wait_recording(simulated)
        simulated.compose("--profile", "log", *how, "recorder")
        assert simulated.wait_ended("recorder") == code, simulated.logs("recorder")
        whole = set(recordings(simulated)) - known
        partials = list_partials(simulated.folder / DATA)
        # Whole only if its time was over just then.
        assert len(whole) + len(partials) == 1
        for path in whole:
            check_whole(path)
        for partial in partials:
            assert len(EpisodeFile(recover_episode(partial)).arrays().state) > 0


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a command that ended with exit code 2 and without a traceback."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_senseless_value_is_one_line(images: Checkout) -> None:
    done = images.run("recorder", variables={"NUM_EPISODES": "many"})
    assert "NUM_EPISODES is 'many', expected 0 or a positive integer" in refusal(done)


def test_a_wrong_model_path_is_one_line(images: Checkout) -> None:
    done = images.run("vla", variables={"VLA_MODEL_PATH": "outputs/nothing"})
    assert "outputs/nothing" in refusal(done)


def test_an_adapter_folder_gives_the_merge_command(trained: Checkout) -> None:
    adapters = f"{MODEL}/lora_adapters"
    done = trained.run("vla", variables={"VLA_MODEL_PATH": adapters})
    said = refusal(done)
    assert "Failed to load VLA model" in said
    assert f"python -m crane_x7_vla.scripts.merge_lora --adapter_path {adapters}" in said


def test_a_folder_that_cannot_be_written_to_is_one_line(images: Checkout) -> None:
    os.chown(images.folder / "data", 0, 0)
    try:
        done = images.run("recorder", variables={"VLA_DATA_ROOT": "data/elsewhere"})
    finally:
        os.chown(images.folder / "data", USER, USER)
    assert f"data cannot be written by user {USER}:{USER}, it belongs to 0:0" in refusal(done)


def test_recordings_that_would_be_lost_are_refused(images: Checkout) -> None:
    done = images.run("recorder", variables={"VLA_DATA_ROOT": "recordings"})
    assert "VLA_DATA_ROOT is recordings, which is not in data or outputs" in refusal(done)


def test_training_whose_results_would_be_lost_is_one_line(recorded: Checkout) -> None:
    done = recorded.run("train", *TRAIN, variables={"VLA_OUTPUT_DIR": "runs"})
    assert "/workspace may not be written to; choose another --output-dir" in refusal(done)


def test_a_missing_device_is_one_line(images: Checkout) -> None:
    done = images.run("cameras", variables={"PRIMARY_CAMERA_DEVICE": "/dev/video77"})
    assert "PRIMARY_CAMERA_DEVICE is /dev/video77, which does not exist" in refusal(done)


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
