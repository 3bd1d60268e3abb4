"""The demo's stages: record, train, merge, try, report. Each can be interrupted and gone on with."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from crane_x7_bringup.demo.journal import Entry, append_entry, read_journal
from crane_x7_bringup.demo.plan import SEEDS_PER_RUN, Plan
from crane_x7_bringup.demo.report import Score, Strip, write_report
from crane_x7_bringup.demo.trials import FRAMES
from crane_x7_bringup.profiles import INSTRUCTION
from crane_x7_vla.data.episode import decode_jpeg
from crane_x7_vla.data.metadata import METADATA_NAME, read_metadata
from crane_x7_vla.errors import DataError
from lift.wilson import wilson_interval

_POLL_S = 0.2
# How long a command may take to save after Ctrl-C, s; a second Ctrl-C does not wait.
_PATIENCE_S = 60.0
_DISTURBANCE = 0.012
_STRIPS = 5
TRAINING = Path(__file__).parent / "training.yaml"

FINE_TUNED = "fine-tuned"
BEFORE = "before fine-tuning"
ELSEWHERE = "fine-tuned, cube drawn elsewhere"


class StageFailedError(RuntimeError):
    """A command of the demo ended with an error; it has said why. code: its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Demo:
    """One run of the demo."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self._times = plan.work / "times.jsonl"

    def run(self, *, fresh: bool) -> Path:
        """All stages; returns the report page. fresh: forget what earlier runs of this plan made."""
        plan = self._plan
        if fresh:
            self._forget()
        plan.work.mkdir(parents=True, exist_ok=True)
        self._check_recordings()
        with self._stage("record"):
            self._record()
        with self._stage("train"):
            self._train()
        with self._stage("merge"):
            self._merge()
        with self._stage("try"):
            scores = self._try()
        return self._report(scores)

    # -- stages -------------------------------------------------------------------------------------------------------

    def _record(self) -> None:
        size = self._plan.size
        shares = _shares(size.episodes, size.workers)
        commands, journals = [], []
        for worker, episodes in enumerate(shares):
            journals.append(self._recording_journal(worker))
            commands.append(
                [
                    *("-m", "crane_x7_bringup.demo.collect"),
                    *("--data-root", str(self._plan.data_root), "--instruction", INSTRUCTION),
                    *("--episodes", str(episodes), "--disturbance", str(_DISTURBANCE)),
                    *("--first-seed", str(self._plan.first_recording_seed + worker), "--stride", str(size.workers)),
                    *("--journal", str(journals[-1]), "--log-dir", str(self._plan.work / "log" / f"record-{worker}")),
                ]
            )
        self._work("recording demonstrations", commands, journals, size.episodes, count=_successes)
        recorded = [entry for journal in journals for entry in read_journal(journal)]
        steps = sum(int(entry["steps"]) for entry in recorded if entry["success"])
        self._console.print(f"{size.episodes} episodes, {steps} steps in {self._plan.data_root}")

    def _train(self) -> None:
        plan = self._plan
        common = [
            *("-m", "crane_x7_vla.training.cli", "train", "--config", str(TRAINING)),
            *("--model-id", str(plan.base), "--data-root", str(plan.data_root)),
            *("--output-dir", str(plan.output_dir), "--seed", str(plan.seed)),
        ]
        if not plan.before.is_dir():
            self._command([*common, "--experiment-name", plan.before.parent.name, "--max-steps", "0"])
        if not (plan.experiment / "checkpoint-final").is_dir():
            resume = ["--resume-from-checkpoint", "latest"] if list(plan.experiment.glob("checkpoint-*")) else []
            steps = ["--max-steps", str(plan.size.train_steps)]
            self._command([*common, "--experiment-name", plan.experiment.name, *steps, *resume])

    def _merge(self) -> None:
        plan = self._plan
        if not plan.merged.is_dir():
            self._command(
                [
                    *("-m", "crane_x7_vla.scripts.merge_lora", "--base_model", str(plan.base)),
                    *("--adapter_path", str(plan.experiment / "checkpoint-final" / "lora_adapters")),
                    *("--output_path", str(plan.merged)),
                ]
            )

    def _try(self) -> list[Score]:
        """The fine-tuned policy, and what it is compared with, each by the same nodes."""
        size = self._plan.size
        experiments = (
            (FINE_TUNED, self._plan.merged, size.trials, []),
            (BEFORE, self._plan.before, size.control_trials, []),
            (ELSEWHERE, self._plan.merged, size.control_trials, ["--draw-elsewhere"]),
        )
        return [self._experiment(name, model, trials, more) for name, model, trials, more in experiments]

    def _experiment(self, name: str, model: Path, trials: int, more: Sequence[str]) -> Score:
        output = self._trials_folder(name)
        first, workers = self._plan.first_trial_seed, self._plan.size.workers
        commands, journals = [], []
        for worker, episodes in enumerate(_shares(trials, workers)):
            seed = first + worker
            journals.append(output / f"trials-{seed}-{workers}.jsonl")
            commands.append(
                [
                    *("-m", "crane_x7_bringup.demo.trials", "--model", str(model), "--instruction", INSTRUCTION),
                    *("--episodes", str(episodes), "--first-seed", str(seed), "--stride", str(workers)),
                    *("--output", str(output), *more),
                ]
            )
        self._work(f"trying: {name}", commands, journals, trials, count=len)
        entries = [entry for journal in journals for entry in read_journal(journal)]
        successes = _successes(entries)
        low, high = wilson_interval(successes, len(entries))
        steps = [int(entry["steps"]) for entry in entries if entry["success"]]
        self._console.print(f"{name}: {successes} of {len(entries)}")
        return Score(
            name=name,
            successes=successes,
            trials=len(entries),
            low=low,
            high=high,
            mean_steps=float(np.mean(steps)) if steps else None,
        )

    def _report(self, scores: Sequence[Score]) -> Path:
        plan = self._plan
        table = Table(title=f"“{INSTRUCTION}” on starts never seen")
        for column in ("policy", "success", "rate", "95 % interval"):
            table.add_column(column, justify="left" if column == "policy" else "right")
        for score in scores:
            interval = f"{score.low:.0%} to {score.high:.0%}"
            table.add_row(score.name, f"{score.successes} of {score.trials}", f"{score.rate:.0%}", interval)
        page = write_report(
            plan.work,
            title="CRANE-X7: from demonstration to motion",
            instruction=INSTRUCTION,
            scores=scores,
            metrics_file=plan.experiment / "metrics.jsonl",
            strips=self._strips(),
            paths={
                "recordings": plan.data_root.resolve(),
                "training run": plan.experiment.resolve(),
                "merged model": plan.merged.resolve(),
                "base model": plan.base.resolve(),
                "logs of the nodes": (plan.work / "log").resolve(),
            },
            durations=self._durations(),
        )
        (plan.work / "scores.json").write_text(
            json.dumps({score.name: [score.successes, score.trials] for score in scores}, indent=2) + "\n"
        )
        self._console.print(table)
        self._console.print(f"recordings: {plan.data_root}\nmerged model: {plan.merged}\nreport: {page.resolve()}")
        return page

    def _strips(self) -> list[Strip]:
        """A few successes and failures of the fine-tuned policy, and what it does when the cube is drawn elsewhere."""
        strips: list[Strip] = []
        for name, wanted in ((FINE_TUNED, True), (FINE_TUNED, False), (ELSEWHERE, False)):
            entries = [
                entry
                for journal in sorted(self._trials_folder(name).glob("*.jsonl"))
                for entry in read_journal(journal)
            ]
            for entry in [entry for entry in entries if bool(entry["success"]) is wanted][:_STRIPS]:
                picture = decode_jpeg(Path(entry["strip"]).read_bytes())
                outcome = "success" if wanted else "failure"
                strips.append(
                    Strip(
                        title=f"{name}, start {entry['seed']}: {outcome} after {entry['steps']} steps",
                        success=wanted,
                        frames=np.split(picture, FRAMES, axis=1),
                    )
                )
        return strips

    # -- running commands ---------------------------------------------------------------------------------------------

    def _command(self, arguments: Sequence[str]) -> None:
        """Run a command of the suite as a user would, its output in the terminal."""
        self._show(arguments)
        # In a session of its own: Ctrl-C comes to this process alone, which gives the command time to save.
        process = subprocess.Popen([sys.executable, *arguments], start_new_session=True)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(_PATIENCE_S)
            raise
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code == 130:
            raise KeyboardInterrupt
        if code:
            raise StageFailedError(f"{arguments[1]} ended with exit code {code}; its last lines above say why", code)

    def _show(self, arguments: Sequence[str]) -> None:
        """Print a command as it could be typed."""
        line = f"$ python {shlex.join(arguments)}"
        self._console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)

    def _work(
        self,
        what: str,
        commands: Sequence[Sequence[str]],
        journals: Sequence[Path],
        total: int,
        *,
        count: Callable[[Sequence[Entry]], int],
    ) -> None:
        """Run workers side by side until all have ended, with a progress bar from their journals."""
        done = sum(count(read_journal(journal)) for journal in journals)
        if done >= total:
            self._console.print(f"{what}: done before ({done})")
            return
        logs = [(self._plan.work / "log" / f"{journal.stem}.txt") for journal in journals]
        processes: list[subprocess.Popen[bytes]] = []
        failed: list[subprocess.Popen[bytes]] = []
        for command in commands:
            self._show(command)
        try:
            for command, log in zip(commands, logs, strict=True):
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("wb") as file:
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, *command],
                            stdin=subprocess.DEVNULL,
                            stdout=file,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,  # Ctrl-C comes to this process alone, which ends them in order
                        )
                    )
            with _progress(self._console) as progress:
                bar = progress.add_task(what, total=total)
                while True:
                    running = [process for process in processes if process.poll() is None]
                    progress.update(bar, completed=sum(count(read_journal(journal)) for journal in journals))
                    failed = [process for process in processes if process.returncode]
                    if failed or not running:
                        break
                    time.sleep(_POLL_S)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            for process in processes:
                process.wait()
        # Those that were stopped because another failed are not to blame.
        for process, log in zip(processes, logs, strict=True):
            if process in failed:
                lines = log.read_text(errors="replace").strip().splitlines()
                raise StageFailedError(
                    f"{what}: {lines[-1] if lines else 'no message'} (log: {log})", process.returncode
                )

    # -- what is there ------------------------------------------------------------------------------------------------

    def _check_recordings(self) -> None:
        """A person's own recordings are neither trained on nor touched."""
        root = self._plan.data_root
        others = sorted(set(root.rglob("*.tfrecord")) - set(self._episodes()))
        if others:
            raise DataError(
                f"{root} holds {len(others)} episodes that are not the demo's, such as {others[0]}; "
                "give the demo another folder: python -m crane_x7_bringup.demo --data-root DIR"
            )

    def _episodes(self) -> list[Path]:
        """The demo's own episodes, known by the scene's seed, which recordings by hand do not have."""
        first = self._plan.first_recording_seed
        found: list[Path] = []
        for path in self._plan.data_root.rglob("*.tfrecord"):
            metadata = read_metadata(path.parent / METADATA_NAME)
            if metadata is not None and metadata.seed is not None and first <= metadata.seed < first + SEEDS_PER_RUN:
                found.append(path)
        return found

    def _forget(self) -> None:
        """Remove what earlier runs of this plan made, and nothing else."""
        self._check_recordings()
        plan = self._plan
        for episode in self._episodes():
            shutil.rmtree(episode.parent, ignore_errors=True)
        for worker in range(plan.size.workers):
            self._recording_journal(worker).unlink(missing_ok=True)
        for folder in (plan.work, plan.experiment, plan.before.parent, plan.merged):
            shutil.rmtree(folder, ignore_errors=True)

    def _recording_journal(self, worker: int) -> Path:
        return self._plan.data_root / f"demo-{worker}.jsonl"

    def _trials_folder(self, name: str) -> Path:
        return self._plan.work / "trials" / name.replace(",", "").replace(" ", "_")

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._console.rule(name, align="left")
        begin = time.monotonic()
        try:
            yield
        finally:
            append_entry(self._times, {"stage": name, "seconds": time.monotonic() - begin})

    def _durations(self) -> Mapping[str, float]:
        """Seconds by stage, all runs of this plan added up."""
        total: dict[str, float] = {}
        for entry in read_journal(self._times):
            total[entry["stage"]] = total.get(entry["stage"], 0.0) + entry["seconds"]
        return total


def _shares(total: int, workers: int) -> list[int]:
    return [total // workers + (worker < total % workers) for worker in range(workers)]


def _successes(entries: Sequence[Entry]) -> int:
    return sum(bool(entry["success"]) for entry in entries)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
