"""The whole chain through ROS with tiny numbers: record, fine-tune, merge, run, report; and what stops it cleanly."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from crane_x7_bringup.demo.collect import Collection, reconcile
from crane_x7_bringup.demo.journal import read_journal
from crane_x7_bringup.demo.plan import FULL, SMOKE, Plan
from crane_x7_vla.data.episode import (
    CameraMetadata,
    EpisodeMetadata,
    EpisodeWriter,
    Step,
    encode_jpeg,
    read_episode,
    set_success,
)
from crane_x7_vla.robot import CRANE_X7

pytestmark = pytest.mark.ros


def command(folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "crane_x7_bringup.demo", "--smoke"),
        *("--data-root", str(folder / "data"), "--output-dir", str(folder / "outputs"), *more),
    ]


def nodes_of(folder: Path) -> list[str]:
    """Command lines of living processes that name the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and int(process.name) != os.getpid():
            found.append(line)
    return found


def test_the_smoke_demo_does_the_whole_chain_and_goes_on_where_it_was(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    episodes = sorted((tmp_path / "data").glob("episode_*/episode_*.tfrecord"))
    assert len(episodes) == SMOKE.episodes
    for episode in episodes:
        recorded = read_episode(episode, load_images=False)
        assert recorded.commanded is not None
        assert recorded.instruction == "pick up the red cube"
    merged = tmp_path / "outputs" / "demo_smoke_merged"
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= {
        path.name for path in merged.iterdir()
    }
    report = tmp_path / "outputs" / "demo_smoke_report"
    scores = json.loads((report / "scores.json").read_text())
    assert [trials for _, trials in scores.values()] == [SMOKE.trials, SMOKE.control_trials, SMOKE.control_trials]
    assert (report / "index.html").exists()
    assert (report / "contact_sheet.png").stat().st_size > 10_000
    for shown in ("fine-tuned", "before fine-tuning", "cube drawn elsewhere", "report:"):
        assert shown in done.stdout
    assert nodes_of(tmp_path) == []

    again = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stdout[-4000:]
    assert again.stdout.count("done before") == 4
    assert sorted((tmp_path / "data").glob("episode_*/episode_*.tfrecord")) == episodes


def test_ctrl_c_while_recording_leaves_no_process_and_no_half_episode(tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("data/episode_*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "nothing that was finished is lost" in output
    assert nodes_of(tmp_path) == []
    for episode in tmp_path.glob("data/episode_*/*.tfrecord"):
        read_episode(episode, load_images=False)


def test_a_persons_own_recordings_are_not_taken_for_the_demos(tmp_path: Path) -> None:
    own = tmp_path / "data" / "episode_0"
    own.mkdir(parents=True)
    (own / "episode_0.tfrecord").write_bytes(b"mine")
    done = subprocess.run(command(tmp_path, "--fresh"), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "episodes that are not the demo's" in done.stdout
    assert "--data-root DIR" in done.stdout.replace("\n", " ")
    assert (own / "episode_0.tfrecord").read_bytes() == b"mine"


def test_seeds_and_sizes_have_folders_and_scenes_of_their_own(tmp_path: Path) -> None:
    plans = [
        Plan.make(size, seed=seed, data_root=None, output_dir=tmp_path) for size in (FULL, SMOKE) for seed in range(3)
    ]
    assert len({plan.data_root for plan in plans}) == len(plans)
    assert len({plan.merged for plan in plans}) == len(plans)
    full = plans[:3]
    recorded = [range(plan.first_recording_seed, plan.first_recording_seed + 2 * FULL.episodes + 20) for plan in full]
    tried = [range(plan.first_trial_seed, plan.first_trial_seed + FULL.trials) for plan in full]
    spans = sorted([*recorded, *tried], key=lambda span: span.start)
    assert all(before.stop <= after.start for before, after in itertools.pairwise(spans))
    assert full[0].data_root == Path("data/tfrecord_logs")


def record(root: Path, seed: int | None) -> Path:
    """A whole episode of one step."""
    metadata = EpisodeMetadata(
        robot=CRANE_X7.name,
        hz=10.0,
        instruction="pick",
        cameras={"primary": CameraMetadata(width=8, height=8)},
        joint_names=CRANE_X7.joint_names,
        seed=seed,
    )
    writer = EpisodeWriter(root, metadata)
    image, state = encode_jpeg(np.zeros((8, 8, 3), np.uint8)), np.zeros(8, np.float32)
    writer.write(Step(images={"primary": image}, state=state, action=state, instruction="pick", stamp=0.0))
    return writer.finish(success=True)


def test_a_mixed_folder_is_refused_and_kept(tmp_path: Path) -> None:
    """A person records into the demo's folder after the demo has run; --fresh must not take these recordings along."""
    both = [record(tmp_path / "data", 3), record(tmp_path / "data", None)]
    done = subprocess.run(command(tmp_path, "--fresh"), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "holds 1 episodes that are not the demo's" in " ".join(done.stdout.split())
    assert all(path.exists() for path in both)


def test_an_episode_saved_just_before_a_kill_is_counted_and_a_failed_one_is_removed(tmp_path: Path) -> None:
    saved, failed = record(tmp_path, 4), record(tmp_path, 6)
    set_success(failed, False)
    wanted = Collection(
        data_root=tmp_path,
        episodes=5,
        instruction="pick",
        first_seed=0,
        stride=2,
        disturbance=0.0,
        journal=tmp_path / "demo-0.jsonl",
        log_dir=tmp_path,
    )
    reconcile(wanted)
    reconcile(wanted)
    assert read_journal(wanted.journal) == [{"seed": 4, "success": True, "steps": 1, "path": str(saved)}]
    assert not failed.parent.exists()
