from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from crane_x7_bringup.demo.goals import BEFORE, ELSEWHERE, FINE_TUNED, GOALS
from crane_x7_bringup.demo.report import Score, Strip, read_metrics, write_report


def metrics_file(folder: Path) -> Path:
    path = folder / "metrics.jsonl"
    lines = [{"step": 10, "train/loss": 0.5}, {"step": 20, "train/loss": 0.25, "eval/action_l1_rad_start": 0.02}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def trials(successes: int, count: int, *, holds: int = 0) -> list[dict[str, object]]:
    """A journal's entries; all holds are of the first one."""
    return [{"success": i < successes, "steps": 41, "holds": holds * (i == 0)} for i in range(count)]


def test_goals_are_met_to_the_trial() -> None:
    for name, worst in ((FINE_TUNED, 90), (BEFORE, 4), (ELSEWHERE, 9)):
        fewer = worst - 1 if name == FINE_TUNED else worst + 1
        assert not Score.of(name, trials(worst, 100), goals=GOALS).missed
        assert Score.of(name, trials(fewer, 100), goals=GOALS).missed
        assert not Score.of(name, trials(fewer, 100), goals=()).missed


def test_metrics_are_read_by_name(tmp_path: Path) -> None:
    series = read_metrics(metrics_file(tmp_path))
    assert series["train/loss"] == ([10, 20], [0.5, 0.25])
    assert series["eval/action_l1_rad_start"] == ([20], [0.02])


def test_the_page_shows_rates_pictures_and_paths(tmp_path: Path) -> None:
    frames = [np.full((16, 16, 3), 30 * i, np.uint8) for i in range(4)]
    page = write_report(
        tmp_path / "report",
        title="A run <of the demo>",
        instruction="pick up the red cube",
        scores=[
            Score.of(FINE_TUNED, trials(9, 10, holds=3), goals=GOALS),
            Score.of(BEFORE, trials(0, 10), goals=()),
            Score.of(ELSEWHERE, trials(2, 10), goals=GOALS),
        ],
        metrics_file=metrics_file(tmp_path),
        strips=[Strip(title="start 7: success", success=True, frames=frames)],
        paths={"merged model": Path("/somewhere/merged")},
        durations={"train": 61.0},
    )
    text = page.read_text()
    for shown in ("A run &lt;of the demo&gt;", "9 of 10", "60% – 98%", "/somewhere/merged", "61 s", ">–</td>"):
        assert shown in text
    assert "<td class=number>41</td><td class=number>3</td><td>at least 90%: met</td>" in text
    assert "<td class=missed>below 10%: missed</td>" in text
    for picture in ("contact_sheet.png", "learning_curve.png"):
        assert (page.parent / picture).read_bytes().startswith(b"\x89PNG")


def test_a_run_without_pictures_still_has_a_page(tmp_path: Path) -> None:
    page = write_report(
        tmp_path,
        title="t",
        instruction="i",
        scores=[],
        metrics_file=metrics_file(tmp_path),
        strips=[],
        paths={},
        durations={},
    )
    assert page.exists()
