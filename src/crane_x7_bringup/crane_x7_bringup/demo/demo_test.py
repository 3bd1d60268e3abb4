"""The whole chain through ROS with tiny numbers: record, fine-tune, merge, run, report; and what stops it cleanly."""

from __future__ import annotations

import dataclasses
import errno
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console

from crane_x7_bringup.demo import __main__ as demo_command
from crane_x7_bringup.demo import collect as collect_command
from crane_x7_bringup.demo import stages, worker
from crane_x7_bringup.demo import trials as trials_command
from crane_x7_bringup.demo.claim import claimed
from crane_x7_bringup.demo.collect import Collection, reconcile
from crane_x7_bringup.demo.commands import Worker
from crane_x7_bringup.demo.goals import BEFORE, ELSEWHERE, FINE_TUNED, GOALS
from crane_x7_bringup.demo.journal import append_entry, read_journal
from crane_x7_bringup.demo.plan import FULL, SMOKE, Plan
from crane_x7_bringup.demo.report import Score
from crane_x7_bringup.demo.stages import Demo
from crane_x7_vla.data.episode import (
    CameraMetadata,
    EpisodeMetadata,
    EpisodeWriter,
    Step,
    encode_jpeg,
    read_episode,
)
from crane_x7_vla.errors import ConfigError, DataError
from crane_x7_vla.robot import CRANE_X7

pytestmark = pytest.mark.ros


def command(folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "crane_x7_bringup.demo", "--smoke"),
        *("--data-root", str(folder / "data"), "--output-dir", str(folder / "outputs"), *more),
    ]


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that name the folder, or whose logs go there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
            known = line + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in known and int(process.name) != os.getpid():
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_smoke_demo_does_the_whole_chain_however_often_it_is_stopped(tmp_path: Path) -> None:
    outputs, report = tmp_path / "outputs", tmp_path / "outputs" / "demo_smoke_report"
    killed = start(tmp_path)
    wait_until((outputs / "demo_smoke").is_dir, killed)
    assert any("crane_x7_vla.training.cli" in line for line in processes_of(tmp_path))
    killed.kill()
    # What it has started holds the same pipe, which ends with the last of them.
    killed.communicate(timeout=120)
    assert processes_of(tmp_path) == []
    episodes = sorted((tmp_path / "data").glob("episode_*/episode_*.tfrecord"))

    stopped = start(tmp_path)
    wait_until(lambda: list(report.glob("trials/*/log-*/sim.log")), stopped)
    assert any("__node:=sim" in line for line in processes_of(tmp_path))
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, output
    assert processes_of(tmp_path) == []

    done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert sorted((tmp_path / "data").glob("episode_*/episode_*.tfrecord")) == episodes
    assert len(episodes) == SMOKE.episodes
    for episode in episodes:
        recorded = read_episode(episode, load_images=False)
        assert recorded.commanded is not None
        assert recorded.instruction == "pick up the red cube"
    merged = outputs / "demo_smoke_merged"
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= {
        path.name for path in merged.iterdir()
    }
    scores = json.loads((report / "scores.json").read_text())
    assert [trials for _, trials in scores.values()] == [SMOKE.trials, SMOKE.control_trials, SMOKE.control_trials]
    assert (report / "index.html").exists()
    assert (report / "contact_sheet.png").stat().st_size > 10_000
    for shown in ("fine-tuned", "before fine-tuning", "cube drawn elsewhere", "report:", "held"):
        assert shown in done.stdout
    assert "goals" not in done.stdout
    assert processes_of(tmp_path) == []

    again = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stdout[-4000:]
    assert again.stdout.count("done before") == 4


def run_here(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Have ``main`` run in this process, whose signals are left alone."""
    words = ["--data-root", str(folder / "data"), "--output-dir", str(folder / "outputs"), *more]
    monkeypatch.setattr(sys, "argv", ["demo", *words])
    monkeypatch.setattr(demo_command, "interrupt_on_ending_signals", lambda: None)


def test_goals_that_are_missed_are_said_and_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {FINE_TUNED: 9, BEFORE: 0, ELSEWHERE: 1}

    def experiment(_: Demo, name: str, *_more: object, **_options: object) -> Score:
        trials = [{"success": i < rates[name], "steps": 40, "holds": 0} for i in range(10)]
        return Score.of(name, trials, goals=GOALS)

    for stage in ("_record", "_train", "_merge"):
        monkeypatch.setattr(Demo, stage, lambda _: None)
    monkeypatch.setattr(Demo, "_experiment", experiment)
    run_here(tmp_path, monkeypatch)
    metrics = tmp_path / "outputs" / "demo" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.touch()
    assert demo_command.main() == 3
    assert f"goals missed: {ELSEWHERE}" in capsys.readouterr().out
    assert "below 10%: missed" in (tmp_path / "outputs" / "demo_report" / "index.html").read_text()
    rates[ELSEWHERE] = 0
    assert demo_command.main() == 0
    assert "goals met" in capsys.readouterr().out


def test_a_second_demo_in_the_same_folders_is_refused(tmp_path: Path) -> None:
    with claimed(tmp_path / "data"):
        done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: another demo is writing to {tmp_path / 'data'}; wait for it")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("more", "how"), [([], "with the same command"), (["--fresh"], "without --fresh")])
def test_who_stops_it_is_told_how_to_go_on(
    more: list[str],
    how: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(_: Demo) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Demo, "_record", stopped)
    run_here(tmp_path, monkeypatch, *more)
    assert demo_command.main() == 130
    assert capsys.readouterr().err == f"\nstopped; nothing that was finished is lost. Go on {how}.\n"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (demo_command, ["--seed", "-1"]),
        (collect_command, ["--first-seed", "-1"]),
        (trials_command, ["--model", "m", "--first-seed", "-1"]),
    ],
)
def test_a_negative_seed_is_refused(
    module: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *words])
    for place in (demo_command, worker):
        monkeypatch.setattr(place, "interrupt_on_ending_signals", lambda: None)
    assert module.main() == 2
    assert capsys.readouterr().err == f"error: {words[-2]} is -1; expected 0 or more\n"


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: Demo) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "demo-0.jsonl")

    monkeypatch.setattr(Demo, "_record", full)
    run_here(tmp_path, monkeypatch)
    assert demo_command.main() == 2
    assert capsys.readouterr().err.startswith("error: demo-0.jsonl: No space left on device; free some space")


def test_ctrl_c_while_recording_leaves_no_process_and_no_half_episode(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_until(lambda: list(tmp_path.glob("data/episode_*")), process)
    nodes = processes_of(tmp_path)
    for name in ("sim", "expert", "recorder"):
        assert any(f"__node:={name}" in line for line in nodes), nodes
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "nothing that was finished is lost" in output
    assert processes_of(tmp_path) == []
    for episode in tmp_path.glob("data/episode_*/*.tfrecord"):
        read_episode(episode, load_images=False)


def test_a_persons_own_recordings_are_not_taken_for_the_demos(tmp_path: Path) -> None:
    own = tmp_path / "data" / "episode_0"
    own.mkdir(parents=True)
    (own / "episode_0.tfrecord").write_bytes(b"mine")
    done = subprocess.run(command(tmp_path, "--fresh"), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "episodes that are not the demo's" in done.stderr
    assert "--data-root DIR" in done.stderr
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


def record(root: Path, seed: int | None, *, success: bool | None = True) -> Path:
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
    return writer.finish(success=success)


def test_a_mixed_folder_is_refused_and_kept(tmp_path: Path) -> None:
    """A person records into the demo's folder after the demo has run; --fresh must not take these recordings along."""
    both = [record(tmp_path / "data", 3), record(tmp_path / "data", None)]
    done = subprocess.run(command(tmp_path, "--fresh"), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "holds 1 episodes that are not the demo's" in done.stderr
    assert all(path.exists() for path in both)


def collection(tmp_path: Path) -> Collection:
    return Collection(
        data_root=tmp_path,
        episodes=5,
        instruction="pick",
        first_seed=0,
        stride=2,
        journal=tmp_path / "demo-0.jsonl",
        log_dir=tmp_path,
    )


def test_an_episode_saved_just_before_a_kill_is_counted_once(tmp_path: Path) -> None:
    saved, wanted = record(tmp_path, 4), collection(tmp_path)
    record(tmp_path, 3)  # of another worker's scenes
    reconcile(wanted)
    reconcile(wanted)
    (entry,) = read_journal(wanted.journal)
    assert (entry["seed"], entry["success"], entry["steps"], entry["path"]) == (4, True, 1, str(saved))


@pytest.mark.parametrize("success", [None, False])
def test_a_take_that_is_no_success_is_named_and_kept(success: bool | None, tmp_path: Path) -> None:
    """A person records by hand into the folder, with a scene that is to be recorded, and marks nothing."""
    take = record(tmp_path, 6, success=success)
    with pytest.raises(DataError, match=f"{take} is of seed 6, .* not marked a success; mark it .*, remove it, or"):
        reconcile(collection(tmp_path))
    assert take.exists()


def demo(tmp_path: Path) -> Demo:
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    plan = Plan.make(FULL, seed=0, data_root=tmp_path / "data", output_dir=tmp_path / "outputs")
    return Demo(dataclasses.replace(plan, base=base), Console(file=io.StringIO()))


def skip_stages(monkeypatch: pytest.MonkeyPatch, *stages: str) -> None:
    for stage in stages:
        monkeypatch.setattr(Demo, stage, lambda *_: [])


def test_fresh_removes_what_the_demo_recorded_and_nobody_elses_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person may have noted a seed of the demo's, too."""
    own, found, person = (record(tmp_path / "data", seed) for seed in (4, 5, 6))
    for number, entry in enumerate(({"seed": 4, "path": str(own)}, {"seed": 5, "path": str(found), "found": True})):
        append_entry(tmp_path / "data" / f"demo-{number}.jsonl", {**entry, "success": True, "steps": 1})
    skip_stages(monkeypatch, "_record", "_train", "_merge", "_try", "_report")
    demo(tmp_path).run(fresh=True)
    assert not own.exists()
    assert found.exists()
    assert person.exists()


def test_another_base_needs_a_fresh_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_stages(monkeypatch, "_record", "_train", "_merge", "_try", "_report")
    run = demo(tmp_path)
    run.run(fresh=False)
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(b"WEIGHTS")
    run.run(fresh=False)  # nothing has been trained on the first one
    (tmp_path / "outputs" / "demo").mkdir()
    run.run(fresh=False)
    weights.write_bytes(b"Weights")
    with pytest.raises(ConfigError, match=r"base has changed since .*: python -m crane_x7_bringup\.demo --fresh"):
        run.run(fresh=False)
    run.run(fresh=True)
    run.run(fresh=False)


def test_what_is_trained_anew_is_merged_and_tried_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person removes the training run alone, to train again."""
    ran: list[str] = []

    def command(self: Demo, words: Sequence[str]) -> None:
        ran.append(words[words.index("--experiment-name") + 1] if "--experiment-name" in words else words[1])

    skip_stages(monkeypatch, "_record", "_try", "_report")
    monkeypatch.setattr(Demo, "_command", command)
    for made in ("demo_before/checkpoint-0", "demo_merged"):
        (tmp_path / "outputs" / made).mkdir(parents=True)
    demo(tmp_path).run(fresh=False)
    assert ran == ["demo", "crane_x7_vla.scripts.merge_lora"]


def test_each_worker_has_a_log_of_its_own_in_the_folder_that_the_report_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs: list[Path] = []

    def note(_: str, workers: Sequence[Worker], *_more: object, **_options: object) -> None:
        for one in workers:
            logs.append(one.log)
            append_entry(one.journal, {"seed": 0, "success": True, "steps": 1, "holds": 0})

    skip_stages(monkeypatch, "_train", "_merge", "_report")
    monkeypatch.setattr(stages, "run_workers", note)
    run = demo(tmp_path)
    for model in ("demo_merged", "demo_before/checkpoint-0"):
        (tmp_path / "outputs" / model).mkdir(parents=True)
        (tmp_path / "outputs" / model / "model.safetensors").touch()
    run.run(fresh=False)
    assert len(logs) == len(set(logs)) == 4 * FULL.workers
    assert all(log.is_relative_to(tmp_path / "outputs" / "demo_report") for log in logs)
