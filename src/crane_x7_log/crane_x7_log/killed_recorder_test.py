"""A recorder that is killed at any moment loses nothing that was whole, and at most the last second of the rest.

Without ROS, to be killed at many points; nodes/recorder_node_test.py kills the node.

    python -m crane_x7_log.killed_recorder_test FOLDER

is the process that forks recorders and kills them; a process of its own, because pytest's has threads.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from crane_x7_log.config import RecorderConfig
from crane_x7_log.recorder import Recorder
from crane_x7_log.sampling import ARM_COMMAND, GRIPPER_COMMAND, STATE
from crane_x7_log.writer import EpisodeThread
from crane_x7_vla.data.episode import EpisodeFile, list_partials, read_episode, recover_episode
from crane_x7_vla.errors import DataError
from crane_x7_vla.robot import CRANE_X7

POINTS = 50
HZ = 10
STEPS_PER_EPISODE = 14
MS = 1_000_000
# A real source is never further ahead of the disk than this; the synthetic one would be.
_LEAD = 2


def state_at(stamp_ns: int) -> np.ndarray:
    return np.full(8, stamp_ns / 1e9, np.float32)


def record_for_ever(root: Path, events: int) -> None:
    """Episodes of STEPS_PER_EPISODE; each event is a line (episodes saved, steps of the present one)."""
    topics = {source: source for source in (STATE, "primary", ARM_COMMAND, GRIPPER_COMMAND)}
    writer = EpisodeThread(root, min_free_bytes=1000)
    recorder = Recorder(RecorderConfig(robot=CRANE_X7, cameras=("primary",), topics=topics, hz=HZ), writer)
    rng = np.random.default_rng(0)
    stamp_ns = 0

    def say() -> None:
        status = recorder.status()
        os.write(events, f"{status.saved} {status.steps}\n".encode())

    while True:
        recorder.start("pick", stamp_ns / 1e9, started_at="")
        steps = 0
        while steps < STEPS_PER_EPISODE:
            stamp_ns += 50 * MS
            now = stamp_ns / 1e9
            recorder.on_joint_state(stamp_ns, state_at(stamp_ns), now)
            if stamp_ns % (100 * MS) == 0:
                recorder.on_image("primary", stamp_ns, rng.integers(0, 256, (48, 64, 3), np.uint8), now)
            recorder.tick(now)
            while writer.backlog > _LEAD:
                time.sleep(0.0005)
            if recorder.status().steps > steps:
                steps = recorder.status().steps
                say()
        recorder.stop(stamp_ns / 1e9)
        say()
        while recorder.status().state != "idle":
            recorder.tick(stamp_ns / 1e9)
            time.sleep(0.0005)
        say()


def kill_at(root: Path, point: int, delay_s: float) -> dict[str, int]:
    """Fork a recorder and kill it ``delay_s`` after its event number ``point``; what it had said before."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            record_for_ever(root, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as events:
        line = ""
        for _ in range(point):
            line = events.readline()
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, "the recorder ended by itself"
    saved, steps = line.split()
    return {"saved": int(saved), "steps": int(steps)}


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for point in range(1, POINTS + 1):
        said = kill_at(folder / str(point), point, float(rng.uniform(0, 0.004)))
        sys.stdout.write(json.dumps(said) + "\n")


def check_whole(path: Path) -> int:
    """The episode is readable to its last step, in order and without a hole; returns its length."""
    episode = read_episode(path)
    np.testing.assert_allclose(np.diff(episode.stamp), 1 / HZ, atol=1e-9)
    np.testing.assert_array_equal(episode.state, np.stack([state_at(round(s * 1e9)) for s in episode.stamp]))
    np.testing.assert_array_equal(episode.action[:-1], episode.state[1:])
    return len(episode.stamp)


def test_a_recorder_killed_at_50_points_loses_at_most_the_last_second_of_one_episode(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crane_x7_log.killed_recorder_test", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == POINTS
    cut_off = in_later_episodes = 0
    for point, before in enumerate(said, start=1):
        root = tmp_path / str(point)
        lengths: dict[str, int] = {}
        for partial in list_partials(root):
            cut_off += 1
            try:
                path = recover_episode(partial)
            except DataError:  # no whole step yet
                lengths[partial.parent.name] = 0
            else:
                metadata = EpisodeFile(path).metadata
                assert metadata is not None
                lengths[path.parent.name] = metadata.n_steps
        for path in root.rglob("*.tfrecord"):
            lengths[path.parent.name] = check_whole(path)
        for earlier in range(before["saved"]):
            assert lengths[f"episode_{earlier}"] >= STEPS_PER_EPISODE, f"point {point}: a saved episode is not whole"
        present = lengths.get(f"episode_{before['saved']}", 0)
        # Less than the second that is promised: what the source is ahead, and the step being written.
        assert present >= before["steps"] - (_LEAD + 1), f"point {point}: {present} of {before['steps']} steps left"
        in_later_episodes += before["saved"] > 0
    assert cut_off >= POINTS // 2
    assert in_later_episodes >= POINTS // 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
