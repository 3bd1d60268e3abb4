"""The demo's stages: record, train, merge, try, report. Each can be interrupted and gone on with."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from crane_x7_bringup.demo.claim import claimed
from crane_x7_bringup.demo.collect import Collection
from crane_x7_bringup.demo.commands import Worker, run_command_line, run_workers
from crane_x7_bringup.demo.goals import BEFORE, ELSEWHERE, FINE_TUNED
from crane_x7_bringup.demo.journal import Entry, append_entry, read_journal
from crane_x7_bringup.demo.plan import SEEDS_PER_RUN, Plan
from crane_x7_bringup.demo.report import Score, Strip, write_report
from crane_x7_bringup.demo.trials import FRAMES, Trials, fingerprint
from crane_x7_bringup.profiles import INSTRUCTION
from crane_x7_vla.data.episode import decode_jpeg
from crane_x7_vla.data.metadata import METADATA_NAME, read_metadata
from crane_x7_vla.errors import ConfigError, DataError

_STRIPS = 5
TRAINING = Path(__file__).parent / "training.yaml"


class Demo:
    """One run of the demo."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self._times = plan.work / "times.jsonl"
        self._logs = plan.work / "log"
        # The commands hold these until they have ended, even when this process is killed.
        self._locks: tuple[int, ...] = ()

    def run(self, *, fresh: bool) -> bool:
        """All stages, and the report; returns whether the goals were met. fresh: forget earlier runs of this plan.

        Raises ConfigError when another process is at it or the base is another than before, DataError where there are
        recordings of somebody else.
        """
        with claimed(self._plan.data_root, self._plan.work) as self._locks:
            self._check_recordings()
            if fresh:
                self._forget()
            self._check_base()
            with self._stage("record"):
                self._record()
            with self._stage("train"):
                self._train()
            with self._stage("merge"):
                self._merge()
            with self._stage("try"):
                scores = self._try()
            self._report(scores)
        return not any(score.missed for score in scores)

    # -- stages -------------------------------------------------------------------------------------------------------

    def _record(self) -> None:
        size = self._plan.size
        workers = []
        for number, episodes in enumerate(_shares(size.episodes, size.workers)):
            wanted = Collection(
                data_root=self._plan.data_root,
                episodes=episodes,
                instruction=INSTRUCTION,
                first_seed=self._plan.first_recording_seed + number,
                stride=size.workers,
                journal=self._recording_journal(number),
                log_dir=self._logs / f"record-{number}",
            )
            workers.append(Worker(wanted.command(), wanted.journal, self._logs / f"record-{number}.txt"))
        run_workers(
            "recording demonstrations", workers, size.episodes, self._console, count=_successes, locks=self._locks
        )
        recorded = [entry for worker in workers for entry in read_journal(worker.journal)]
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
            shutil.rmtree(plan.merged, ignore_errors=True)  # of an earlier training
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

    def _command(self, arguments: Sequence[str]) -> None:
        run_command_line(arguments, self._console, locks=self._locks)

    def _try(self) -> list[Score]:
        """The fine-tuned policy, and what it is compared with, each by the same nodes."""
        size = self._plan.size
        return [
            self._experiment(FINE_TUNED, self._plan.merged, size.trials),
            self._experiment(BEFORE, self._plan.before, size.control_trials),
            self._experiment(ELSEWHERE, self._plan.merged, size.control_trials, draw_elsewhere=True),
        ]

    def _experiment(self, name: str, model: Path, trials: int, *, draw_elsewhere: bool = False) -> Score:
        size, folder, workers = self._plan.size, self._trials_folder(name), []
        for number, episodes in enumerate(_shares(trials, size.workers)):
            wanted = Trials(
                model=model,
                instruction=INSTRUCTION,
                episodes=episodes,
                first_seed=self._plan.first_trial_seed + number,
                stride=size.workers,
                draw_elsewhere=draw_elsewhere,
                output=folder,
            )
            wanted.begin()
            workers.append(Worker(wanted.command(), wanted.journal, self._logs / f"{folder.name}-{number}.txt"))
        run_workers(f"trying: {name}", workers, trials, self._console, count=len, locks=self._locks)
        entries = [entry for worker in workers for entry in read_journal(worker.journal)]
        score = Score.of(name, entries, goals=size.goals)
        self._console.print(f"{name}: {score.successes} of {score.trials}")
        return score

    def _report(self, scores: Sequence[Score]) -> None:
        plan = self._plan
        table = Table(title=f"“{INSTRUCTION}” on starts never seen")
        for column in ("policy", "success", "rate", "95 % interval", "held", "goal"):
            table.add_column(column, justify="left" if column in ("policy", "goal") else "right")
        for score in scores:
            interval = f"{score.low:.0%} to {score.high:.0%}"
            success = f"{score.successes} of {score.trials}"
            table.add_row(score.name, success, f"{score.rate:.0%}", interval, str(score.holds), score.verdict)
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
                "logs, pictures and journals": plan.work.resolve(),
            },
            durations=self._durations(),
        )
        (plan.work / "scores.json").write_text(
            json.dumps({score.name: [score.successes, score.trials] for score in scores}, indent=2) + "\n"
        )
        self._console.print(table)
        self._console.print(f"recordings: {plan.data_root}\nmerged model: {plan.merged}\nreport: {page.resolve()}")
        if plan.size.goals:
            missed = [score.name for score in scores if score.missed]
            self._console.print(f"goals missed: {', '.join(missed)}" if missed else "goals met")

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

    # -- what is there ------------------------------------------------------------------------------------------------

    def _check_recordings(self) -> None:
        """Raises DataError where there are recordings that bear no seed of this plan: those of a person."""
        root = self._plan.data_root
        others = sorted(set(root.rglob("*.tfrecord")) - set(self._episodes()))
        if others:
            raise DataError(
                f"{root} holds {len(others)} episodes that are not the demo's, such as {others[0]}; "
                "give the demo another folder: python -m crane_x7_bringup.demo --data-root DIR"
            )

    def _check_base(self) -> None:
        """Raises ConfigError when what was trained began from another base."""
        plan, known = self._plan, self._plan.work / "base.txt"
        present = fingerprint(plan.base)
        trained = plan.experiment.is_dir() or plan.before.is_dir()
        if trained and known.exists() and known.read_text() != present:
            raise ConfigError(
                f"the base {plan.base} has changed since {plan.experiment} was trained on it; do every stage again, "
                "with the options of before: python -m crane_x7_bringup.demo --fresh"
            )
        known.write_text(present)

    def _episodes(self) -> list[Path]:
        """Episodes whose seed is one of this plan's scenes; a person may have noted such a seed, too."""
        first = self._plan.first_recording_seed
        found: list[Path] = []
        for path in self._plan.data_root.rglob("*.tfrecord"):
            metadata = read_metadata(path.parent / METADATA_NAME)
            if metadata is not None and metadata.seed is not None and first <= metadata.seed < first + SEEDS_PER_RUN:
                found.append(path)
        return found

    def _forget(self) -> None:
        """Remove what earlier runs of this plan made, and nothing else."""
        plan = self._plan
        journals = [self._recording_journal(worker) for worker in range(plan.size.workers)]
        entries = [entry for journal in journals for entry in read_journal(journal)]
        recorded = {Path(entry["path"]).resolve() for entry in entries if entry["success"] and "found" not in entry}
        for episode in self._episodes():
            if episode.resolve() in recorded:
                shutil.rmtree(episode.parent, ignore_errors=True)
        for journal in journals:
            journal.unlink(missing_ok=True)
        # The folder of the report itself stays, as it is locked.
        inside = [path for path in plan.work.iterdir() if path.is_dir()]
        for folder in (*inside, plan.experiment, plan.before.parent, plan.merged):
            shutil.rmtree(folder, ignore_errors=True)
        self._times.unlink(missing_ok=True)

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
