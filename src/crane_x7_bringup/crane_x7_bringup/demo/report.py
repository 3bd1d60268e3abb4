"""The page that a demo run leaves behind: success rates, learning curve, pictures, and where everything is."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from crane_x7_bringup.demo.goals import Goal
from crane_x7_bringup.demo.journal import Entry
from lift.wilson import wilson_interval

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #2a9d5c; --bad: #c8553d; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; }
td, th { padding: .35rem .9rem; border-bottom: 1px solid var(--line); text-align: left; }
td.missed { color: var(--bad); } td.number { font-variant-numeric: tabular-nums; text-align: right; }
img { max-width: 100%; height: auto; border-radius: 6px; } code { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Outcome of one experiment. low, high: bounds of the 95 % Wilson interval of the success rate. holds: how often
    the arm held its position because an answer was refused or lacking. goal: None where nothing is expected."""

    name: str
    successes: int
    trials: int
    low: float
    high: float
    mean_steps: float | None
    holds: int
    goal: Goal | None = None

    @classmethod
    def of(cls, name: str, trials: Sequence[Entry], *, goals: Sequence[Goal]) -> Score:
        """Counted from a journal's entries; raises ValueError for none."""
        steps = [int(trial["steps"]) for trial in trials if trial["success"]]
        low, high = wilson_interval(len(steps), len(trials))
        return cls(
            name=name,
            successes=len(steps),
            trials=len(trials),
            low=low,
            high=high,
            mean_steps=float(np.mean(steps)) if steps else None,
            holds=sum(int(trial["holds"]) for trial in trials),
            goal=next((goal for goal in goals if goal.experiment == name), None),
        )

    @property
    def rate(self) -> float:
        return self.successes / self.trials

    @property
    def missed(self) -> bool:
        """Whether the goal, if there is one, was missed."""
        return self.goal is not None and not self.goal.met(self.rate)

    @property
    def verdict(self) -> str:
        """The goal, and whether it was met."""
        return "–" if self.goal is None else f"{self.goal}: {'missed' if self.missed else 'met'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Frames of one trial in the order of time, uint8 [H, W, 3] RGB each."""

    title: str
    success: bool
    frames: Sequence[np.ndarray]


def write_report(
    directory: Path,
    *,
    title: str,
    instruction: str,
    scores: Sequence[Score],
    metrics_file: Path,
    strips: Sequence[Strip],
    paths: Mapping[str, Path],
    durations: Mapping[str, float],
) -> Path:
    """Write index.html with its pictures into ``directory`` and return the page's path.

    metrics_file: the trainer's metrics.jsonl. durations: seconds by stage.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _learning_curve(metrics_file, directory / "learning_curve.png")
    _contact_sheet(strips, directory / "contact_sheet.png")
    rows = "".join(
        f"<tr><td>{html.escape(s.name)}</td><td class=number>{s.successes} of {s.trials}</td>"
        f"<td class=number>{s.rate:.0%}</td><td class=number>{s.low:.0%} – {s.high:.0%}</td>"
        f"<td class=number>{'–' if s.mean_steps is None else f'{s.mean_steps:.0f}'}</td>"
        f"<td class=number>{s.holds}</td><td{' class=missed' * s.missed}>{html.escape(s.verdict)}</td></tr>"
        for s in scores
    )
    made = "".join(
        f"<tr><td>{html.escape(k)}</td><td><code>{html.escape(str(v))}</code></td></tr>" for k, v in paths.items()
    )
    times = "".join(f"<tr><td>{html.escape(k)}</td><td class=number>{v:.0f} s</td></tr>" for k, v in durations.items())
    page = directory / "index.html"
    page.write_text(
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{_STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>Task: “{html.escape(instruction)}”. Success is judged by the simulator: the cube lifted by 5 cm and held for 1 s,
on starts that no demonstration showed. The interval is Wilson's, 95 %. Held: how often the arm held its
position because an answer of the policy was refused or lacking.</p>
<table><tr><th>policy<th>success<th>rate<th>interval<th>steps to success<th>held<th>goal</tr>{rows}</table>
<h2>What the arm did</h2>
<img src="contact_sheet.png" alt="Frames of successful and failed trials, one trial a row">
<h2>Learning curve</h2>
<img src="learning_curve.png" alt="Training loss and error on held-out episodes over training steps">
<h2>Where things are</h2><table>{made}</table>
<h2>Time</h2><table>{times}</table>
</html>
""",
        encoding="utf-8",
    )
    return page


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """metrics.jsonl -> {name: (steps, values)}."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                steps, values = series.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(float(value))
    return series


def _learning_curve(metrics_file: Path, target: Path) -> None:
    series = read_metrics(metrics_file)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    panels = (
        (left, ("train/loss", "eval/loss"), "loss (L1, normalised)"),
        (right, ("train/action_l1_rad", "eval/action_l1_rad", "eval/action_l1_rad_start"), "joint target error (rad)"),
    )
    for axis, names, label in panels:
        for name in names:
            if name in series:
                axis.plot(*series[name], label=name, linewidth=1.4, alpha=0.55 if name.startswith("train") else 1.0)
        axis.set(xlabel="training step", ylabel=label, yscale="log")
        axis.grid(alpha=0.25)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.savefig(target, dpi=120)


def _contact_sheet(strips: Sequence[Strip], target: Path) -> None:
    columns = max((len(strip.frames) for strip in strips), default=1)
    rows = max(len(strips), 1)
    figure = Figure(figsize=(1.5 * columns, 1.62 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, strip in zip(axes, strips, strict=False):
        for axis, frame in zip(row, strip.frames, strict=False):
            axis.imshow(frame)
        row[0].set_title(strip.title, fontsize=8, loc="left", color="#2a9d5c" if strip.success else "#c8553d")
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.25 / rows, bottom=0.01, wspace=0.03, hspace=0.18)
    figure.savefig(target, dpi=110)
