"""A recorder and a robot made up for its tests, without ROS and in time of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from crane_x7_log.config import RecorderConfig
from crane_x7_log.recorder import Recorder
from crane_x7_log.sampling import ARM_COMMAND, GRIPPER_COMMAND, STATE
from crane_x7_log.writer import EpisodeThread
from crane_x7_vla.data.episode import Episode, EpisodeFile, EpisodeMetadata, read_episode
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
            self.writer._work.put(barrier := Barrier())  # pyright: ignore[reportPrivateUsage]
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


class Barrier:
    """Work that only says that the writer has come this far."""

    def __init__(self) -> None:
        self._done = threading.Event()

    def __call__(self) -> None:
        self._done.set()

    def wait(self) -> None:
        assert self._done.wait(30)


Make = Callable[[RecorderConfig], Rig]
