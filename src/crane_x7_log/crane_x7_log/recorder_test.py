from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from crane_x7_log.config import RecorderConfig
from crane_x7_log.recorder import Recorder, RefusedError
from crane_x7_log.sampling import ARM_COMMAND, GRIPPER_COMMAND, STATE
from crane_x7_log.writer import EpisodeThread
from crane_x7_vla.data.episode import Episode, EpisodeFile, EpisodeMetadata, decode_jpeg, list_partials, read_episode
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.robot import CRANE_X7

MS = 1_000_000
TOPICS = {
    STATE: "/joint_states",
    "primary": "/camera/color/image_raw",
    "wrist": "/camera_wrist/color/image_raw",
    ARM_COMMAND: "/arm",
    GRIPPER_COMMAND: "/gripper",
}
CONFIG = RecorderConfig(robot=CRANE_X7, cameras=("primary", "wrist"), topics=TOPICS)
LOCKSTEP = replace(CONFIG, lockstep=True)


def state_at(stamp_ns: int) -> np.ndarray:
    return np.arange(8, dtype=np.float32) / 10 + np.float32(stamp_ns / 1e9)


def image_at(stamp_ns: int) -> np.ndarray:
    return np.full((16, 24, 3), stamp_ns // (10 * MS) % 256, np.uint8)


@dataclass
class Rig:
    """A recorder and a synthetic robot whose messages' contents say when they were made; time is header time."""

    recorder: Recorder
    writer: EpisodeThread
    root: Path
    log: pytest.LogCaptureFixture
    publishers: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOPICS, 1))
    now: float = 0.0
    ahead_ns: int = 0
    """By how much the clock of the stamps is ahead of the recorder's."""

    def start(self, instruction: str = "pick up the red cube", *, seed: int | None = None) -> str:
        return self.recorder.start(instruction, self.now, started_at="2026-01-01T00:00:00+00:00", seed=seed)

    def run(
        self,
        begin_ms: int,
        end_ms: int,
        *,
        without: tuple[str, ...] = (),
        image: Callable[[int], np.ndarray] = image_at,
        arm: Callable[[int], np.ndarray] | None = None,
        at_once: bool = False,
    ) -> None:
        """Joint states at 100 Hz, images at 25 Hz, commands at 20 Hz when ``arm`` gives them, in real time.

        at_once: the commands have no stamp and are due when they come, instead of 50 ms after their stamp.
        """
        for ms in range(begin_ms, end_ms, 10):
            self.now, stamp = ms / 1000, ms * MS + self.ahead_ns
            if arm is not None and ms % 50 == 0:
                for part, joints in ((ARM_COMMAND, slice(0, 7)), (GRIPPER_COMMAND, slice(7, 8))):
                    start, times = (None, np.array([0])) if at_once else (stamp, np.array([50 * MS]))
                    self.recorder.on_command(part, start, times, arm(stamp)[None, joints].astype(np.float64), self.now)
            if STATE not in without:
                self.recorder.on_joint_state(stamp, state_at(stamp), self.now)
            for camera in ("primary", "wrist"):
                if ms % 40 == 0 and camera not in without:
                    self.recorder.on_image(camera, stamp, image(stamp), self.now)
            self.recorder.tick(self.now)

    def instant(self, stamp_ns: int, *, commands: bool = True) -> None:
        """Everything of one instant in lockstep."""
        self.recorder.on_joint_state(stamp_ns, state_at(stamp_ns), self.now)
        for camera in ("primary", "wrist"):
            self.recorder.on_image(camera, stamp_ns, image_at(stamp_ns), self.now)
        if commands:
            for part, joints in ((ARM_COMMAND, slice(0, 7)), (GRIPPER_COMMAND, slice(7, 8))):
                points = np.stack([state_at(stamp_ns) + 0.25, state_at(stamp_ns) + 0.5]).astype(np.float64)
                self.recorder.on_command(part, stamp_ns, np.array([50 * MS, 100 * MS]), points[:, joints], self.now)
        self.now += 0.01
        self.recorder.tick(self.now)

    def settle(self) -> None:
        """Let time pass until nothing is on its way any more."""
        for _ in range(1000):
            self.now += 0.05
            self.recorder.tick(self.now)
            if self.recorder.status().state == "idle":
                return
            self.writer._work.put(barrier := _Barrier())  # pyright: ignore[reportPrivateUsage]
            barrier.wait()
        raise AssertionError(f"never idle: {self.recorder.status()}")

    def saved(self) -> tuple[Episode, EpisodeMetadata]:
        self.settle()
        last = self.recorder.status().last
        assert last is not None
        assert last.outcome == "saved", last
        metadata = EpisodeFile(Path(last.path)).metadata
        assert metadata is not None
        episode = read_episode(Path(last.path))
        assert len(episode.state) == last.steps
        return episode, metadata

    def nothing(self) -> str:
        """The reason why no episode came of it."""
        self.settle()
        last = self.recorder.status().last
        assert last is not None
        assert last.outcome == "nothing"
        assert not list(self.root.rglob("*.tfrecord*"))
        return last.reason


class _Barrier:
    """Work that only says that the writer has come this far."""

    def __init__(self) -> None:
        import threading

        self._done = threading.Event()

    def __call__(self) -> None:
        self._done.set()

    def wait(self) -> None:
        assert self._done.wait(30)


Make = Callable[[RecorderConfig], Rig]


@pytest.fixture
def make(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Make]:
    rigs: list[Rig] = []
    caplog.set_level(logging.INFO)

    def make_rig(config: RecorderConfig) -> Rig:
        publishers = dict.fromkeys(TOPICS, 1)
        writer = EpisodeThread(tmp_path, min_free_bytes=1000)
        recorder = Recorder(config, writer, count_publishers=publishers.__getitem__)
        rigs.append(Rig(recorder, writer, tmp_path, caplog, publishers))
        return rigs[-1]

    yield make_rig
    for rig in rigs:
        rig.writer.close(30)


def test_an_episode_holds_what_was_seen_at_its_instants(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 500)
    assert rig.recorder.status().waiting_for == ()
    assert rig.start(seed=3) == "recording"
    rig.run(500, 2000)
    assert rig.recorder.status().state == "recording"
    rig.recorder.mark_success(True)
    assert "episode_0" in rig.recorder.stop(rig.now)
    episode, metadata = rig.saved()
    np.testing.assert_allclose(np.diff(episode.stamp), 0.1, atol=1e-9)
    for k, stamp in enumerate(episode.stamp):
        np.testing.assert_array_equal(episode.state[k], state_at(round(stamp * 1e9)))
        seen = EpisodeFile(episode.path).step(k).image_stamps["wrist"]
        assert abs(seen - stamp) <= 0.0201
        assert abs(int(decode_jpeg(episode.images["wrist"][k])[0, 0, 0]) - round(seen * 100) % 256) <= 2
    np.testing.assert_array_equal(episode.action[:-1], episode.state[1:])
    np.testing.assert_array_equal(episode.action[-1], state_at(round((episode.stamp[-1] + 0.1) * 1e9)))
    assert 0.45 <= episode.stamp[0] <= 0.51
    assert episode.stamp[-1] >= 1.75
    assert episode.commanded is None
    assert (metadata.seed, metadata.success, metadata.hz) == (3, True, 10.0)
    assert metadata.cameras["wrist"].topic == "/camera_wrist/color/image_raw"
    assert (metadata.cameras["wrist"].width, metadata.cameras["wrist"].height) == (24, 16)
    assert metadata.end_reason == "stopped by the operator"
    assert set(metadata.missed.values()) | set(metadata.dropped.values()) == {0}
    assert metadata.started_at == "2026-01-01T00:00:00+00:00"


def test_the_commanded_target_is_the_one_in_force_at_the_end_of_the_step(make: Make) -> None:
    rig = make(CONFIG)

    def ramp(stamp_ns: int) -> np.ndarray:
        """Where the arm shall be 50 ms later: at 2 rad/s of header time."""
        return np.full(8, 2 * (stamp_ns / 1e9 + 0.05), np.float32)

    rig.run(0, 300, arm=ramp)
    rig.start()
    rig.run(300, 1500, arm=ramp)
    rig.recorder.stop(rig.now)
    episode, _ = rig.saved()
    assert episode.commanded is not None
    assert len(episode.stamp) >= 9
    np.testing.assert_allclose(episode.commanded, np.tile(2 * (episode.stamp[:, None] + 0.1), (1, 8)), atol=1e-5)


def test_a_command_without_a_stamp_is_in_force_when_it_comes_by_the_clock_of_the_joint_states(make: Make) -> None:
    """Commands at 0, 50, 100 ms …; a step that ends between two holds the one before, one that ends with one that."""
    rig = make(CONFIG)

    def said(stamp_ns: int) -> np.ndarray:
        return np.full(8, stamp_ns / 1e9, np.float32)

    rig.ahead_ns = 500_000 * MS
    rig.run(0, 300, arm=said, at_once=True)
    rig.start()
    rig.run(300, 1500, arm=said, at_once=True)
    rig.recorder.stop(rig.now)
    episode, metadata = rig.saved()
    assert episode.commanded is not None
    assert len(episode.stamp) >= 9
    ends = np.round(episode.stamp + 0.1, 6)
    expected = np.floor(np.round(ends / 0.05, 3)) * 0.05
    np.testing.assert_allclose(episode.commanded, np.tile(expected[:, None], (1, 8)), atol=1e-4)
    assert metadata.dropped[ARM_COMMAND] == 0


def test_a_command_without_a_stamp_before_the_first_joint_state_is_told(make: Make) -> None:
    rig = make(replace(CONFIG, commanded="required"))
    rig.recorder.on_command(ARM_COMMAND, None, np.array([0]), np.ones((1, 7)), rig.now)
    assert "it has no stamp, and no joint state has said what time it is" in " ".join(rig.recorder.status().waiting_for)


def test_a_gripper_that_was_never_commanded_holds_where_it_was(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.recorder.on_command(ARM_COMMAND, 200 * MS, np.array([10 * MS]), np.ones((1, 7)), rig.now)
    rig.run(200, 1000)
    rig.recorder.stop(rig.now)
    episode, _ = rig.saved()
    assert episode.commanded is not None
    np.testing.assert_array_equal(episode.commanded[:, 7], np.full(len(episode.stamp), episode.state[0, 7]))
    np.testing.assert_array_equal(episode.commanded[2:, :7], 1.0)


def test_commands_of_an_episode_are_all_there_or_not_at_all(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1000)
    rig.run(1000, 2000, arm=lambda stamp: np.zeros(8, np.float32))
    rig.recorder.stop(rig.now)
    assert rig.saved()[0].commanded is None
    assert "it has no action/commanded" in rig.log.text
    off = make(replace(CONFIG, commanded="off"))
    off.run(0, 200, arm=lambda stamp: np.zeros(8, np.float32))
    off.start()
    off.run(200, 1000, arm=lambda stamp: np.zeros(8, np.float32))
    off.recorder.stop(off.now)
    assert off.saved()[0].commanded is None


def test_required_commands_are_waited_for(make: Make) -> None:
    rig = make(replace(CONFIG, commanded="required"))
    rig.run(0, 200)
    assert "arm_command (/arm), published by 1 node: start the teleoperation or the policy" in rig.start()
    rig.run(200, 1000)
    assert rig.recorder.status().state == "waiting"
    rig.run(1000, 2000, arm=lambda stamp: np.ones(8, np.float32))
    rig.recorder.stop(rig.now)
    episode, _ = rig.saved()
    assert episode.commanded is not None
    assert 0.9 <= episode.stamp[0] <= 1.1


def test_commands_from_before_a_reset_do_not_hold_after_it(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 500, arm=lambda stamp: np.full(8, 9, np.float32))
    rig.run(1500, 2000)
    rig.start()
    rig.run(2000, 3000)
    rig.recorder.stop(rig.now)
    assert rig.saved()[0].commanded is None


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


def test_discard_leaves_nothing_and_the_next_episode_takes_its_number(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1200)
    assert "episode_0" in rig.recorder.discard()
    with pytest.raises(RefusedError, match="discarding"):
        rig.start()
    rig.settle()
    assert rig.recorder.status().last == rig.recorder.status().last
    assert not list(rig.root.iterdir())
    rig.run(1200, 1500)
    rig.start()
    rig.run(1500, 2500)
    rig.recorder.stop(rig.now)
    assert rig.saved()[0].path.parent.name == "episode_0"
    assert rig.recorder.status().saved == 1


def test_two_recordings_have_each_their_own_instruction_latched_at_the_start(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start("pick up the red cube", seed=1)
    rig.run(200, 1200)
    rig.recorder.stop(rig.now)
    first, _ = rig.saved()
    rig.start("put it down")
    rig.run(1200, 2200)
    rig.recorder.stop(rig.now)
    second, metadata = rig.saved()
    assert (first.instruction, second.instruction) == ("pick up the red cube", "put it down")
    assert second.path.parent.name == "episode_1"
    assert second.stamp[0] > first.stamp[-1]
    assert metadata.seed is None


def test_requests_out_of_order_are_refused_with_the_reason(make: Make) -> None:
    rig = make(CONFIG)
    for act in (lambda: rig.recorder.stop(0.0), rig.recorder.discard):
        with pytest.raises(RefusedError, match="the recorder is idle"):
            act()
    with pytest.raises(RefusedError, match="no saved episode"):
        rig.recorder.mark_success(True)
    with pytest.raises(RefusedError, match="parameter instruction is empty"):
        rig.start("  ")
    rig.start()
    with pytest.raises(RefusedError, match="the recorder is waiting"):
        rig.start()
    assert rig.recorder.stop(rig.now) == "nothing was recorded"
    assert rig.nothing() == "stopped by the operator"


def test_success_can_be_said_of_the_last_episode(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1200)
    rig.recorder.stop(rig.now)
    assert rig.saved()[1].success is None
    rig.recorder.mark_success(False)
    assert rig.saved()[1].success is False


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
    rig.writer._work.put(barrier := _Barrier())  # pyright: ignore[reportPrivateUsage]
    barrier.wait()

    def full(file: object, payload: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("crane_x7_vla.data.episode_writer.write_record", full)
        rig.run(1200, 2000)
        rig.writer._work.put(barrier := _Barrier())  # pyright: ignore[reportPrivateUsage]
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
    gate = _Barrier()
    writer._work.put(gate.wait)  # pyright: ignore[reportPrivateUsage]
    rig.start()
    rig.run(0, 3000)
    assert rig.recorder.status().state == "saving"
    gate()
    episode, metadata = rig.saved()
    assert len(episode.stamp) == 5
    assert "too slow, 5 steps wait for it" in metadata.end_reason
    assert writer.close(30)


def test_shutting_down_keeps_an_episode_as_partial_and_says_how_to_recover_it(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1200)
    rig.recorder.shut_down(30)
    (partial,) = list_partials(rig.root)
    assert f"recover it with: python -m crane_x7_log.episodes recover {partial}" in rig.log.text
    assert not list(rig.root.rglob("*.tfrecord"))


def test_shutting_down_after_stop_finishes_the_episode(make: Make) -> None:
    for config in (CONFIG, LOCKSTEP):
        rig = make(config)
        rig.start()
        if config.lockstep:
            for k in range(10):
                rig.instant(k * 100 * MS)
        else:
            rig.run(0, 1200)
        rig.recorder.stop(rig.now)
        rig.recorder.shut_down(30)
        assert rig.recorder.status().saved == 1


# --- lockstep ---


def run_lockstep(rig: Rig, start_ms: int, n: int) -> None:
    for k in range(n):
        rig.instant((start_ms + 100 * k) * MS)
    rig.instant((start_ms + 100 * n) * MS, commands=False)


@pytest.mark.parametrize("reset_first", [False, True])
def test_lockstep_records_every_instant_exactly(make: Make, reset_first: bool) -> None:
    rig = make(LOCKSTEP)
    run_lockstep(rig, 0, 3)
    if reset_first:
        rig.instant(1300 * MS, commands=False)
        rig.start()
    else:
        rig.start()
        rig.instant(1300 * MS, commands=False)
    run_lockstep(rig, 1300, 20)
    rig.recorder.stop(rig.now)
    episode, metadata = rig.saved()
    np.testing.assert_array_equal(np.round(episode.stamp * 1000), 1300 + 100 * np.arange(20))
    assert episode.commanded is not None
    for k in range(20):
        stamp = (1300 + 100 * k) * MS
        np.testing.assert_array_equal(episode.state[k], state_at(stamp))
        np.testing.assert_array_equal(episode.action[k], state_at(stamp + 100 * MS))
        np.testing.assert_array_equal(episode.commanded[k], state_at(stamp) + np.float32(0.5))
    assert set(metadata.missed.values()) == {0}
    assert metadata.end_reason == "stopped by the operator"


def test_lockstep_waits_after_stop_for_messages_on_their_way(make: Make) -> None:
    rig = make(LOCKSTEP)
    rig.start()
    for k in range(5):
        rig.instant(k * 100 * MS)
    rig.recorder.stop(rig.now)
    rig.instant(500 * MS)
    rig.instant(600 * MS, commands=False)
    assert rig.recorder.status().state == "recording"
    with pytest.raises(RefusedError, match="being saved already"):
        rig.recorder.stop(rig.now)
    episode, _ = rig.saved()
    assert len(episode.stamp) == 6


def test_lockstep_reset_right_after_stop_is_no_fault(make: Make) -> None:
    rig = make(LOCKSTEP)
    rig.start()
    run_lockstep(rig, 0, 5)
    rig.recorder.stop(rig.now)
    rig.instant(1500 * MS, commands=False)
    episode, metadata = rig.saved()
    assert len(episode.stamp) == 5
    assert metadata.end_reason == "stopped by the operator"
    rig.start()
    run_lockstep(rig, 1500, 5)
    rig.recorder.stop(rig.now)
    assert rig.saved()[0].stamp[0] == 1.5


def test_lockstep_reset_without_stop_ends_the_episode(make: Make) -> None:
    rig = make(LOCKSTEP)
    rig.start()
    run_lockstep(rig, 0, 5)
    rig.instant(1500 * MS)
    episode, metadata = rig.saved()
    assert len(episode.stamp) == 5
    assert "the simulator was reset" in metadata.end_reason


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong, message in [
        ({"cameras": ()}, "camera_names is empty"),
        ({"cameras": ("state",)}, "cannot be named 'state'"),
        ({"cameras": ("a", "a")}, "has a name twice"),
        ({"hz": 0.0}, "control_hz is 0.0"),
        ({"commanded": "maybe"}, "expected one of auto, required, off"),
        ({"jpeg_quality": 0}, "expected 1 to 100"),
        ({"frozen_camera_s": -1.0}, "frozen_camera_s is -1.0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            replace(CONFIG, **wrong)


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
