"""What ends an episode that nobody stopped, and what is said of it: sources, and the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crane_x7_log.recorder import Recorder, RefusedError
from crane_x7_log.recorder_rig_test import CONFIG, LOCKSTEP, MS, TOPICS, Barrier, Make, Rig, image_at, state_at
from crane_x7_log.sampling import STATE
from crane_x7_log.writer import EpisodeThread
from crane_x7_vla.data.episode import EpisodeMetadata, list_partials


@pytest.mark.parametrize("camera", ["primary", "wrist"])
def test_a_camera_that_stops_ends_the_episode_and_keeps_it(make: Make, camera: str) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1200)
    rig.run(1200, 3000, without=(camera,))
    episode, metadata = rig.saved()
    assert f"{camera} ({TOPICS[camera]}) is stale" in metadata.end_reason
    assert metadata.end_reason in rig.log.text
    assert 8 <= len(episode.stamp) <= 10
    assert metadata.success is None


def test_joint_states_that_stop_end_the_episode(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1200)
    rig.run(1200, 3000, without=(STATE,))
    assert "joint_states (/joint_states) is stale" in rig.saved()[1].end_reason


def test_a_camera_that_repeats_a_picture_while_the_arm_moves_ends_the_episode(make: Make) -> None:
    frozen = image_at(0)
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1000)
    rig.run(1000, 5000, image=lambda stamp: frozen)
    episode, metadata = rig.saved()
    assert "one and the same picture for 2.0 s while the arm moved by 2.00 rad" in metadata.end_reason
    assert episode.stamp[-1] < 3.3
    allowed = make(replace(CONFIG, frozen_camera_s=0.0))
    allowed.run(0, 200)
    allowed.start()
    allowed.run(200, 5000, image=lambda stamp: frozen)
    assert allowed.recorder.status().state == "recording"


def test_a_still_scene_with_a_still_arm_is_no_fault(make: Make) -> None:
    rig = make(CONFIG)
    rig.start()
    for ms in range(0, 6000, 10):
        rig.now = ms / 1000
        rig.recorder.on_joint_state(ms * MS, state_at(0), rig.now)
        for camera in ("primary", "wrist"):
            rig.recorder.on_image(camera, ms * MS, image_at(0), rig.now)
        rig.recorder.tick(rig.now)
    rig.recorder.stop(rig.now)
    assert len(rig.saved()[0].stamp) >= 57


def test_when_everything_stops_the_time_out_names_what_is_missing(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1200)
    rig.run(1200, 20_000, without=(STATE, "primary", "wrist"))
    episode, metadata = rig.saved()
    assert metadata.end_reason.startswith("no step for 10 s, waiting for")
    assert "primary (/camera/color/image_raw), published by 1 node: start the camera" in metadata.end_reason
    assert len(episode.stamp) >= 8


def test_a_camera_that_never_comes_ends_in_a_time_out_that_names_its_topic(make: Make) -> None:
    rig = make(CONFIG)
    rig.publishers["wrist"] = 0
    assert rig.start() != "recording"
    rig.run(0, 12_000, without=("wrist",))
    assert rig.nothing() == (
        "no step for 10 s, waiting for wrist (/camera_wrist/color/image_raw), which nobody publishes: "
        "start the camera or the simulated arm"
    )


def test_what_cannot_be_converted_is_counted_and_named(make: Make) -> None:
    rig = make(CONFIG)
    rig.start()
    for ms in range(0, 12_000, 100):
        rig.recorder.reject(STATE, "joint state lacks crane_x7_gripper_finger_a_joint")
        rig.run(ms, ms + 100, without=(STATE,))
    assert "last problem: joint state lacks crane_x7_gripper_finger_a_joint" in rig.nothing()
    assert rig.recorder.status().dropped[STATE] >= 99


def test_a_picture_of_another_size_is_dropped(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1000)
    rig.run(1000, 2000, image=lambda stamp: np.zeros((8, 8, 3), np.uint8))
    _, metadata = rig.saved()
    assert metadata.dropped["primary"] >= 10
    assert "is stale" in metadata.end_reason


def test_a_restarted_clock_ends_the_episode(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(5000, 5200)
    rig.start()
    rig.run(5200, 6000)
    rig.run(0, 500)
    assert "went backwards from 5.990 s to 0.000 s" in rig.saved()[1].end_reason
    rig.start()
    rig.run(500, 1500)
    rig.recorder.stop(rig.now)
    assert rig.saved()[0].stamp[0] < 1


def test_two_arms_on_one_topic_are_refused_and_end_an_episode(make: Make) -> None:
    rig = make(CONFIG)
    rig.publishers[STATE] = 2
    with pytest.raises(RefusedError, match=r"2 nodes publish /joint_states, so the states of two arms"):
        rig.start()
    rig.publishers[STATE] = 1
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1200)
    rig.publishers[STATE] = 2
    rig.run(1200, 1300)
    assert "2 nodes publish /joint_states" in rig.saved()[1].end_reason


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = EpisodeThread(tmp_path / "file", min_free_bytes=1000)
    recorder = Recorder(CONFIG, writer)
    with pytest.raises(ValueError, match=r"cannot write to .*file"):
        recorder.start("pick", 0.0, started_at="")
    assert recorder.status().state == "idle"
    full = EpisodeThread(tmp_path, min_free_bytes=1 << 60)
    with pytest.raises(ValueError, match="no space on the disk"):
        Recorder(CONFIG, full).start("pick", 0.0, started_at="")
    assert writer.close(30)
    assert full.close(30)


def test_a_disk_that_fills_up_ends_the_episode_with_what_it_has(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1200)
    rig.writer._work.put(barrier := Barrier())  # pyright: ignore[reportPrivateUsage]
    barrier.wait()

    def full(file: object, payload: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("crane_x7_vla.data.episode_writer.write_record", full)
        rig.run(1200, 2000)
        rig.writer._work.put(barrier := Barrier())  # pyright: ignore[reportPrivateUsage]
        barrier.wait()
        rig.run(2000, 2100)
    episode, metadata = rig.saved()
    assert metadata.end_reason.startswith("no space on the disk of")
    assert rig.log.text.count("the episode ends: no space on the disk") == 1
    assert 8 <= len(episode.stamp) <= 10


def test_an_episode_that_cannot_be_finished_is_left_as_partial(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, said in ((OSError(28, "No space left on device"), "no space on the disk"), (RuntimeError("bug"), "bug")):

        def fail(partial: Path, metadata: EpisodeMetadata, error: Exception = error) -> None:
            raise error

        rig = make(CONFIG)
        rig.start()
        rig.run(0, 1000)
        with monkeypatch.context() as patched:
            patched.setattr("crane_x7_vla.data.episode_writer._commit", fail)
            rig.recorder.stop(rig.now)
            rig.settle()
        last = rig.recorder.status().last
        assert last is not None
        assert last.outcome == "left"
        assert said in last.reason
        assert f"recover it with: python -m crane_x7_log.episodes recover {last.path}" in rig.log.text
        assert Path(last.path) in list_partials(rig.root)


def test_a_folder_that_cannot_be_removed_is_said_and_recording_goes_on(make: Make) -> None:
    rig = make(CONFIG)
    rig.start()
    rig.run(0, 1000)
    (rig.root / "episode_0" / "notes.txt").write_text("somebody's")
    rig.recorder.discard()
    rig.settle()
    last = rig.recorder.status().last
    assert last is not None
    assert last.outcome == "discarded"
    assert "cannot remove" in last.reason
    assert last.reason in rig.log.text
    rig.run(1000, 1200)
    rig.start()
    rig.run(1200, 2000)
    rig.recorder.stop(rig.now)
    assert rig.saved()[0].path.parent.name == "episode_1"


def test_a_disk_that_is_too_slow_ends_the_episode(tmp_path: Path) -> None:
    writer = EpisodeThread(tmp_path, min_free_bytes=1000, queue_steps=5)
    rig = Rig(Recorder(CONFIG, writer), writer, tmp_path, None)  # pyright: ignore[reportArgumentType]
    gate = Barrier()
    writer._work.put(gate.wait)  # pyright: ignore[reportPrivateUsage]
    rig.start()
    rig.run(0, 3000)
    assert rig.recorder.status().state == "saving"
    gate()
    episode, metadata = rig.saved()
    assert len(episode.stamp) == 5
    assert "too slow, 5 steps wait for it" in metadata.end_reason
    assert writer.close(30)


def test_a_source_that_falls_silent_is_told_also_while_idle(make: Make) -> None:
    rig = make(CONFIG)
    assert rig.recorder.silent(100.0) == ()  # what never came is told by the status
    rig.run(0, 1000)
    rig.run(1000, 4000, without=("wrist",))
    assert rig.recorder.silent(rig.now) == ("nothing from wrist (/camera_wrist/color/image_raw) for 3 s",)
    assert len(rig.recorder.silent(rig.now + 3)) == 3


def test_silence_in_lockstep_is_the_simulator_that_waits(make: Make) -> None:
    rig = make(LOCKSTEP)
    rig.instant(1000 * MS)
    assert rig.recorder.silent(rig.now + 60) == ()
