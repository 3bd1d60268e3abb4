"""TensorFlow itself reads our files, and we read TensorFlow's."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np
import pytest

from crane_x7_vla.data.episode import CameraMetadata, EpisodeFile, EpisodeMetadata, EpisodeWriter, Step, encode_jpeg
from crane_x7_vla.data.tfrecord import RecordFile, decode_example, encode_example
from crane_x7_vla.robot import CRANE_X7

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = importlib.import_module("tensorflow")

N_STEPS = 12


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = EpisodeMetadata(
        robot=CRANE_X7.name,
        hz=10.0,
        instruction="赤い積み木を取って",
        cameras={name: CameraMetadata(width=40, height=32) for name in ("primary", "wrist")},
        joint_names=CRANE_X7.joint_names,
    )
    writer = EpisodeWriter(tmp_path_factory.mktemp("data"), metadata)
    red, blue = np.zeros((2, 32, 40, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    for k in range(N_STEPS):
        writer.write(
            Step(
                images={"primary": encode_jpeg(red), "wrist": encode_jpeg(blue)},
                state=np.full(8, k, np.float32),
                action=np.full(8, k + 1, np.float32),
                commanded=np.full(8, k + 0.5, np.float32),
                stamp=100.0 + k / 10,
                instruction=metadata.instruction,
            )
        )
    return writer.finish()


def test_tf_data_reads_our_episode(episode: Path) -> None:
    joints = tf.io.FixedLenFeature([8], tf.float32)
    spec = {
        "observation/state": joints,
        "observation/image": tf.io.FixedLenFeature([], tf.string),
        "observation/image_wrist": tf.io.FixedLenFeature([], tf.string),
        "observation/stamp_ns": tf.io.FixedLenFeature([], tf.int64),
        "action": joints,
        "action/commanded": joints,
        "language_instruction": tf.io.FixedLenFeature([], tf.string),
        "schema_version": tf.io.FixedLenFeature([], tf.int64),
    }
    dataset = tf.data.TFRecordDataset(str(episode)).map(lambda record: tf.io.parse_single_example(record, spec))
    records = list(dataset.as_numpy_iterator())
    assert len(records) == N_STEPS
    for k, record in enumerate(records):
        assert record["observation/state"].tolist() == [k] * 8
        assert record["action"].tolist() == [k + 1] * 8
        assert record["action/commanded"].tolist() == [k + 0.5] * 8
        assert record["observation/stamp_ns"] == 100_000_000_000 + k * 100_000_000
        assert record["language_instruction"].decode() == "赤い積み木を取って"
        assert record["schema_version"] == 1
    image = tf.io.decode_jpeg(records[0]["observation/image"]).numpy()
    assert image.shape == (32, 40, 3)
    assert np.abs(image.astype(int) - [255, 0, 0]).max() <= 2
    wrist = tf.io.decode_jpeg(records[0]["observation/image_wrist"]).numpy()
    assert np.abs(wrist.astype(int) - [0, 0, 255]).max() <= 2


def test_we_read_what_tensorflow_writes(tmp_path: Path) -> None:
    target = tmp_path / "theirs" / "run-7.tfrecord"
    target.parent.mkdir()
    black = tf.io.encode_jpeg(np.zeros((16, 16, 3), np.uint8)).numpy()

    def floats(value: float) -> object:
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value] * 8))

    with tf.io.TFRecordWriter(str(target)) as writer:
        for k in range(3):
            features = {
                "observation/proprio": floats(k),
                "observation/image_primary": tf.train.Feature(bytes_list=tf.train.BytesList(value=[black])),
                "observation/timestep": tf.train.Feature(int64_list=tf.train.Int64List(value=[-k])),
                "action": floats(k + 1),
                "prompt": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"push it"])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    file = EpisodeFile(target)
    assert len(file) == 3
    assert file.instruction == "push it"
    assert file.metadata is None
    assert file.step(2).state.tolist() == [2] * 8
    assert file.step(2).images["primary"] == black
    assert decode_example(RecordFile(target)[2])["observation/timestep"].tolist() == [-2]  # pyright: ignore


def test_tensorflow_parses_extreme_values_alike() -> None:
    ints = np.array([0, -1, 127, 128, 1 << 62, -(1 << 63)], np.int64)
    data = encode_example({"ints": ints, "bytes": [b"", b"\x00\xff"], "floats": np.array([-0.0, 1e-45], np.float32)})
    features = tf.train.Example.FromString(data).features.feature
    assert list(features["ints"].int64_list.value) == ints.tolist()
    assert list(features["bytes"].bytes_list.value) == [b"", b"\x00\xff"]
    assert decode_example(tf.train.Example.FromString(data).SerializeToString())["ints"].tolist() == ints.tolist()  # pyright: ignore
