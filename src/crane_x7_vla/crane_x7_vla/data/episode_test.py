from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crane_x7_vla.data import episode_writer
from crane_x7_vla.data.episode import (
    CameraMetadata,
    DiskFullError,
    EpisodeFile,
    EpisodeMetadata,
    EpisodeWriter,
    Step,
    decode_jpeg,
    encode_jpeg,
    jpeg_size,
    list_episodes,
    list_partials,
    read_episode,
    recover_episode,
    set_success,
)
from crane_x7_vla.data.step import decode_step, encode_step
from crane_x7_vla.data.tfrecord import encode_example, write_record
from crane_x7_vla.errors import DataError
from crane_x7_vla.robot import CRANE_X7

METADATA = EpisodeMetadata(
    robot="crane_x7",
    hz=10.0,
    instruction="pick up the red cube",
    cameras={name: CameraMetadata(width=24, height=16, topic=f"/{name}") for name in ("primary", "wrist")},
    joint_names=CRANE_X7.joint_names,
    seed=7,
)


def image(k: int) -> bytes:
    return encode_jpeg(np.full((16, 24, 3), k, np.uint8))


def step(k: int) -> Step:
    return Step(
        images={"primary": image(k), "wrist": image(k + 100)},
        state=np.arange(8, dtype=np.float32) + k,
        action=np.arange(8, dtype=np.float32) + k + 1,
        commanded=np.arange(8, dtype=np.float32) + k + 1.25,
        stamp=1000 + k / 10,
        state_stamp=1000 + k / 10 + 0.001,
        image_stamps={"primary": 1000 + k / 10 - 0.01, "wrist": 1000 + k / 10},
        instruction=METADATA.instruction,
    )


def record(root: Path, n: int = 5, metadata: EpisodeMetadata = METADATA) -> Path:
    writer = EpisodeWriter(root, metadata)
    for k in range(n):
        writer.write(step(k))
    return writer.finish(True, end_reason="stopped", missed={"wrist": 1})


def foreign(path: Path, records: list[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for features in records:
            write_record(file, encode_example(features))  # pyright: ignore[reportArgumentType]
    return path


def their_record(**changed: object) -> dict[str, object]:
    record: dict[str, object] = {
        "observation/proprio": np.zeros(8, np.float32),
        "observation/image_primary": image(0),
        "action": np.ones(8, np.float32),
        "task/language_instruction": b"push",
    }
    return {key: value for key, value in (record | changed).items() if value is not None}


def test_pure_red_stays_red_and_small_objects_keep_their_colour() -> None:
    picture = np.full((32, 32, 3), 90, np.uint8)
    picture[10:13, 10:13] = [255, 0, 0]
    decoded = decode_jpeg(encode_jpeg(picture))
    assert decoded[11, 11, 0] > 230
    assert decoded[11, 11, 1:].max() < 30
    assert jpeg_size(encode_jpeg(picture[:, :20])) == (32, 20)


@pytest.mark.parametrize("broken", [b"", b"no image", encode_jpeg(np.zeros((16, 16, 3), np.uint8))[:-30]])
def test_a_damaged_jpeg_is_a_data_error(broken: bytes) -> None:
    with pytest.raises(DataError, match="JPEG"):
        decode_jpeg(broken)


def test_images_that_are_not_rgb_are_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        encode_jpeg(np.zeros((4, 4), np.uint8))


def test_a_step_survives_its_record() -> None:
    back = decode_step(encode_step(step(3)))
    assert back.images == step(3).images
    assert back.image_stamps == step(3).image_stamps
    assert back.stamp == step(3).stamp
    assert back.state_stamp == pytest.approx(step(3).state_stamp, abs=1e-9)
    assert back.instruction == METADATA.instruction
    for name in ("state", "action", "commanded"):
        np.testing.assert_array_equal(getattr(back, name), getattr(step(3), name))


def test_an_episode_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = record(tmp_path)
    assert path == tmp_path / "episode_0" / "episode_0.tfrecord"
    assert sorted(p.name for p in path.parent.iterdir()) == ["episode_0.tfrecord", "episode_metadata.json"]
    episode = read_episode(path)
    assert episode.commanded is not None
    for k in range(5):
        np.testing.assert_array_equal(episode.state[k], step(k).state)
        np.testing.assert_array_equal(episode.action[k], step(k).action)
        np.testing.assert_array_equal(episode.commanded[k], step(k).commanded)
        assert episode.images["wrist"][k] == step(k).images["wrist"]
    np.testing.assert_allclose(episode.stamp, 1000 + np.arange(5) / 10, atol=1e-9)
    assert (episode.instruction, episode.robot, episode.hz, episode.schema_version) == (
        METADATA.instruction,
        "crane_x7",
        10.0,
        1,
    )
    assert read_episode(path, load_images=False).images == {}


def test_steps_are_read_at_random_also_by_worker_processes(tmp_path: Path) -> None:
    file = pickle.loads(pickle.dumps(EpisodeFile(record(tmp_path))))
    assert len(file) == 5
    assert file.cameras == ("primary", "wrist")
    assert file.step(3).images == step(3).images
    assert file.metadata.missed == {"wrist": 1}
    assert file.metadata.seed == 7
    assert file.metadata.cameras["wrist"] == METADATA.cameras["wrist"]
    np.testing.assert_array_equal(file.arrays().action[:, 0], np.arange(5) + 1)
    with pytest.raises(IndexError, match="5 steps"):
        file.step(5)


def test_episodes_are_listed_in_natural_order_without_partial_ones(tmp_path: Path) -> None:
    for name in ("episode_10", "episode_2"):
        foreign(tmp_path / name / f"{name}.tfrecord", [their_record()])
    EpisodeWriter(tmp_path, METADATA).close()
    assert [p.parent.name for p in list_episodes(tmp_path)] == ["episode_2", "episode_10"]
    assert [p.parent.name for p in list_partials(tmp_path)] == ["episode_11"]


def test_no_episodes_is_an_error_that_says_how_to_record(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        list_episodes(tmp_path / "data")
    assert str(error.value) == (
        f"no episodes under {tmp_path}/data. Expected episode_*/episode_*.tfrecord; "
        "record some with: ros2 launch crane_x7_log recorder.launch.py"
    )
    EpisodeWriter(tmp_path, METADATA).close()
    with pytest.raises(DataError, match=f"episodes recover {tmp_path}"):
        list_episodes(tmp_path)


def test_files_of_other_projects_are_read_by_their_names(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a" / "b.tfrecord", [their_record(), their_record()])
    (tmp_path / "a" / "episode_metadata.json").write_text('{"their": "own"}')
    episode = read_episode(path)
    assert episode.instruction == "push"
    assert episode.hz is None
    assert episode.robot is None
    assert episode.commanded is None
    assert list(episode.images) == ["primary"]
    np.testing.assert_allclose(episode.stamp, [0, 0.1])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (their_record(**{"observation/proprio": None}), "record 1: no observation/state or observation/proprio"),
        (their_record(**{"observation/proprio": np.zeros(7, np.float32)}), "record 1: action has 8 values"),
        (
            their_record(**{"observation/proprio": np.zeros(7, np.float32), "action": np.zeros(7, np.float32)}),
            "record 1 has 7 joints, record 0 has 8",
        ),
        (
            their_record(action=np.full(8, np.nan, np.float32)),
            "record 1 is damaged: action holds a value that is not a finite",
        ),
        (their_record(**{"observation/image_primary": None}), r"record 1 has cameras \[\], record 0 has \['primary'\]"),
        (their_record(**{"task/language_instruction": b"pull"}), r"record 1 has another instruction \('pull'\)"),
        (their_record(**{"task/language_instruction": b"\xff"}), "record 1: task/language_instruction is not UTF-8"),
        (their_record(action=b"bytes"), "record 1: action must be floats, got 1 byte strings"),
        (their_record(schema_version=np.array([2], np.int64)), "record 1: schema_version 2 is newer than 1"),
    ],
)
def test_a_record_that_does_not_fit_is_named(tmp_path: Path, second: Mapping[str, object], message: str) -> None:
    path = foreign(tmp_path / "x.tfrecord", [their_record(), second])
    with pytest.raises(DataError, match=message) as error:
        read_episode(path)
    assert str(path) in str(error.value)


def test_a_state_without_the_gripper_is_named_with_the_joints_that_belong_there(tmp_path: Path) -> None:
    path = record(tmp_path)
    seven = np.zeros(7, np.float32)
    foreign(path, [their_record(**{"observation/proprio": seven, "action": seven})] * 5)
    with pytest.raises(DataError, match=r"has 7 values of observation/state, expected 8: .*gripper_finger_a_joint"):
        EpisodeFile(path).arrays()


def test_a_corrupt_record_is_named(tmp_path: Path) -> None:
    path = record(tmp_path)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{path}: record 4 is damaged"):
        read_episode(path)


@pytest.mark.parametrize("name", ["episode_3/episode_3.tfrecord", "episode_3/kitchen.tfrecord"])
@pytest.mark.parametrize("damage", ["checksum", "cut off", "empty", "steps lost", "content", "no example"])
def test_whatever_is_wrong_with_an_episode_the_message_says_what_to_type(
    tmp_path: Path, name: str, damage: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir()
    record(tmp_path / "elsewhere").rename(path)
    data = bytearray(path.read_bytes())
    if damage == "checksum":
        data[-100] ^= 1
    elif damage == "cut off":
        data = data[:-3]
    elif damage == "empty":
        data = bytearray()
    path.write_bytes(data)
    if damage == "content":
        foreign(path, [their_record(), their_record(action=b"bytes")])
    if damage == "no example":
        with path.open("wb") as file:
            write_record(file, b"no Example")
    if damage == "steps lost":
        (tmp_path / "elsewhere/episode_0/episode_metadata.json").rename(path.parent / "episode_metadata.json")
        foreign(path, [their_record()])
    remove, root = (path.parent, tmp_path) if name.startswith("episode_3/episode_3") else (path, path.parent)
    for read in (read_episode, lambda path: [file := EpisodeFile(path), *(file.step(k) for k in range(len(file)))]):
        with pytest.raises(DataError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ")
        assert str(error.value).endswith(
            f"; copy it again, or remove {remove}; see all with: python -m crane_x7_log.episodes check {root}"
        )


def test_whether_stamps_were_recorded_is_known(tmp_path: Path) -> None:
    assert EpisodeFile(record(tmp_path)).has_stamps
    assert not EpisodeFile(foreign(tmp_path / "x.tfrecord", [their_record()])).has_stamps


def test_steps_lost_at_a_record_boundary_are_found(tmp_path: Path) -> None:
    path = record(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="holds no steps"):
        EpisodeFile(path)
    with path.open("wb") as file:
        write_record(file, encode_step(step(0)))
    with pytest.raises(DataError, match=r"holds 1 steps, its episode_metadata.json says 5"):
        EpisodeFile(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read: .*; copy it again, or remove .*episode_0; see all with: "),
        ('{"schema_version": 1}', "damaged: 'cameras'; copy it again"),
        ('{"schema_version": 2}', "newer than 1, update the suite to read it$"),
        ('{"schema_version": "x"}', "damaged"),
    ],
)
def test_damaged_metadata_is_a_data_error(tmp_path: Path, content: str, message: str) -> None:
    path = record(tmp_path)
    (path.parent / "episode_metadata.json").write_text(content)
    with pytest.raises(DataError, match=message):
        EpisodeFile(path)


def test_two_writers_take_different_folders_and_numbers_go_on(tmp_path: Path) -> None:
    (tmp_path / "episode_4").mkdir(parents=True)
    first, second = EpisodeWriter(tmp_path, METADATA), EpisodeWriter(tmp_path, METADATA)
    assert [w.path.parent.name for w in (first, second)] == ["episode_5", "episode_6"]
    first.discard()
    second.discard()
    assert [p.name for p in tmp_path.iterdir()] == ["episode_4"]


def test_the_writer_refuses_steps_that_do_not_fit(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, METADATA)
    writer.write(step(0))
    seven = np.zeros(7, np.float32)
    for wrong, message in [
        (replace(step(1), state=seven, action=seven, commanded=seven), "7 joints"),
        (replace(step(1), images={"primary": b""}), "cameras"),
        (replace(step(1), instruction="other"), "says 'other'"),
        (replace(step(1), commanded=None), "either all steps"),
    ]:
        with pytest.raises(ValueError, match=message):
            writer.write(wrong)
    writer.write(step(1))
    assert len(read_episode(writer.finish()).state) == 2


def test_what_is_written_is_on_the_disk_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, synced = 0.0, []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(now), real(descriptor)))
    writer = EpisodeWriter(tmp_path, METADATA, clock=lambda: now)
    synced.clear()
    for k in range(40):
        now = k / 10
        writer.write(step(k))
    assert max(np.diff([0.0, *synced])) <= 1.0
    assert len(synced) <= 9
    now = 3.95
    writer.sync_if_due()
    assert synced[-1] < 3.95, "not yet due"
    now = 4.5
    writer.sync_if_due()
    assert synced[-1] == 4.5
    now = 6.0
    writer.sync_if_due()
    assert synced[-1] == 4.5, "nothing new"


def test_an_interrupted_episode_is_recovered_up_to_its_last_whole_step(tmp_path: Path) -> None:
    for cut, kept in ((0, 5), (1, 4), (700, 4)):
        writer = EpisodeWriter(tmp_path, METADATA)
        for k in range(5):
            writer.write(step(k))
        partial = writer.close()
        data = partial.read_bytes()
        partial.write_bytes(data[: len(data) - cut])
        path = recover_episode(partial)
        assert len(read_episode(path).state) == kept
        metadata = EpisodeFile(path).metadata
        assert metadata is not None
        assert metadata.recovered
        assert metadata.end_reason == "interrupted"
        assert metadata.seed == 7
        assert sorted(p.name for p in path.parent.iterdir()) == [path.name, "episode_metadata.json"]


def test_recovery_stops_before_a_damaged_record(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, METADATA)
    for k in range(5):
        writer.write(step(k))
    partial = writer.close()
    data = bytearray(partial.read_bytes())
    data[len(data) // 2] ^= 1
    partial.write_bytes(data)
    assert len(read_episode(recover_episode(partial)).state) == 2


def test_a_whole_episode_that_lacks_only_the_rename_keeps_its_metadata(tmp_path: Path) -> None:
    path = record(tmp_path)
    path.rename(path.with_name(path.name + ".partial"))
    recover_episode(path.with_name(path.name + ".partial"))
    metadata = EpisodeFile(path).metadata
    assert metadata is not None
    assert metadata.success is True
    assert not metadata.recovered


def test_recovery_refuses_what_it_cannot_or_must_not_touch(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, METADATA)
    writer.write(step(0))
    partial = tmp_path / "episode_0" / "episode_0.tfrecord.partial"
    with pytest.raises(DataError, match="still being recorded"):
        recover_episode(partial)
    writer.close()
    (tmp_path / "episode_0" / "episode_metadata.json.partial").unlink()
    with pytest.raises(DataError, match="robot and rate are not known"):
        recover_episode(partial)
    partial.write_bytes(partial.read_bytes()[:50])
    with pytest.raises(DataError, match="no whole step; remove"):
        recover_episode(partial)
    with pytest.raises(DataError, match="not an interrupted episode"):
        recover_episode(tmp_path / "x.tfrecord")


def test_success_can_be_said_afterwards(tmp_path: Path) -> None:
    path = record(tmp_path)
    set_success(path, False)
    metadata = EpisodeFile(path).metadata
    assert metadata is not None
    assert metadata.success is False
    assert metadata.missed == {"wrist": 1}
    (path.parent / "episode_metadata.json").unlink()
    with pytest.raises(DataError, match="success cannot be noted"):
        set_success(path, True)


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write to .*file/data: Not a directory. Give another folder"):
        EpisodeWriter(tmp_path / "file" / "data", METADATA)


def test_too_little_space_stops_before_and_during_an_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiskFullError, match=r"no space on the disk of .* Free some"):
        EpisodeWriter(tmp_path, METADATA, min_free_bytes=1 << 60)
    assert list(tmp_path.iterdir()) == []
    now = 0.0
    writer = EpisodeWriter(tmp_path, METADATA, clock=lambda: now)
    writer.write(step(0))
    free = episode_writer.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(episode_writer.shutil, "disk_usage", lambda path: free._replace(free=1000))
    now = 2.0
    with pytest.raises(DiskFullError, match="0 MB free"):
        writer.write(step(1))
    assert len(read_episode(writer.finish(end_reason="no space")).state) == 2


def test_an_episode_that_cannot_be_begun_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(target: Path, metadata: EpisodeMetadata) -> None:
        target.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(episode_writer, "write_metadata", full)
    with pytest.raises(DiskFullError, match="no space on the disk"):
        EpisodeWriter(tmp_path, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_in_the_middle_of_a_record_keeps_the_steps_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = EpisodeWriter(tmp_path, METADATA)
    writer.write(step(0))

    def full(file: object, payload: bytes) -> int:
        file.write(payload[:100])  # pyright: ignore[reportAttributeAccessIssue]
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(episode_writer, "write_record", full)
        with pytest.raises(DiskFullError, match="no space on the disk"):
            writer.write(step(1))
    assert len(read_episode(writer.finish()).state) == 1


def test_metadata_is_plain_json(tmp_path: Path) -> None:
    metadata = json.loads((record(tmp_path).parent / "episode_metadata.json").read_text())
    assert metadata["image_encoding"] == "rgb"
    assert metadata["cameras"]["primary"] == {"width": 24, "height": 16, "topic": "/primary"}
    assert metadata["n_steps"] == 5
    assert metadata["success"] is True
