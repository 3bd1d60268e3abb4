from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crane_x7_log.episodes import main
from crane_x7_vla.command import CLOSED_PIPE
from crane_x7_vla.data.episode import CameraMetadata, EpisodeMetadata, EpisodeWriter, Step, encode_jpeg, list_partials
from crane_x7_vla.robot import CRANE_X7

N_STEPS = 40


def step(k: int) -> Step:
    image = np.full((32, 40, 3), 5 * k, np.uint8)
    image[..., 0] = 255
    return Step(
        images={"primary": encode_jpeg(image)},
        state=np.array(CRANE_X7.home, np.float32) + np.float32(0.01 * k),
        action=np.array(CRANE_X7.home, np.float32) + np.float32(0.01 * (k + 1)),
        commanded=np.array(CRANE_X7.home, np.float32) + np.float32(0.01 * (k + 2)),
        stamp=5.0 + k / 10,
        instruction="pick up the red cube",
    )


def record(
    root: Path,
    change: Callable[[int, Step], Step] = lambda k, step: step,
    *,
    finish: bool = True,
    missed: dict[str, int] | None = None,
) -> Path:
    metadata = EpisodeMetadata(
        robot=CRANE_X7.name,
        hz=10.0,
        instruction="pick up the red cube",
        cameras={"primary": CameraMetadata(width=40, height=32)},
        joint_names=CRANE_X7.joint_names,
    )
    writer = EpisodeWriter(root, metadata)
    for k in range(N_STEPS):
        writer.write(change(k, step(k)))
    return writer.finish(True, missed=missed) if finish else writer.close()


def test_show_lists_the_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(11):
        record(tmp_path)
    record(tmp_path, finish=False)
    assert main(["show", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split(" +", lines[0]) == [
        *("episode", "steps", "seconds", "Hz", "cameras", "commanded", "success", "missed", "instruction")
    ]
    assert re.split("  +", lines[3]) == [
        *("episode_2", "40", "3.9", "10.0", "primary", "yes", "yes", "0", "pick up the red cube")
    ]
    assert lines[11].startswith("episode_10 ")
    assert lines[12] == "11 episodes, 440 steps, 43 s, 11 marked as success"
    assert lines[13].startswith("1 more were cut off; recover them with: python -m crane_x7_log.episodes recover")


def test_the_contact_sheet_shows_every_camera_in_its_colours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "data")
    sheet = tmp_path / "pictures" / "sheet.png"
    assert main(["show", str(tmp_path / "data"), "--contact-sheet", str(sheet)]) == 0
    assert f"wrote {sheet}" in capsys.readouterr().out
    picture = np.asarray(Image.open(sheet))
    assert picture.shape == (16 + 96 + 2, 8 * (120 + 2), 3)
    assert picture[60, 60, 0] > 250
    assert picture[60, 60, 1] < 10
    assert 185 < picture[60, 7 * 122 + 60, 1] < 205, "the last frame"


def test_check_is_content_with_a_good_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path)
    assert main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 episodes checked: 0 with errors, 0 with warnings\n"


Change = Callable[[int, Step], Step]


def hole(k: int, step: Step) -> Step:
    return replace(step, stamp=step.stamp + 0.3 * (k > 20))


def standing_clock(k: int, step: Step) -> Step:
    return replace(step, stamp=5.0)


def degrees(k: int, step: Step) -> Step:
    return replace(step, state=np.float32(57.3) * step.state, action=np.float32(57.3) * step.action)


def wild_command(k: int, step: Step) -> Step:
    assert step.commanded is not None
    return replace(step, commanded=step.commanded + np.float32(2))


def own_state(k: int, step: Step) -> Step:
    return replace(step, action=step.state)


def uncommanded(k: int, step: Step) -> Step:
    return replace(step, commanded=None)


def still(k: int, step: Step) -> Step:
    home = np.array(CRANE_X7.home, np.float32)
    return replace(step, state=home, action=home)


def frozen_camera(k: int, first: Step) -> Step:
    return first if k < 6 else replace(first, images=step(6).images)


def cut_image(k: int, step: Step) -> Step:
    return replace(step, images={"primary": step.images["primary"][:-60]}) if k == 7 else step


def sideways(k: int, step: Step) -> Step:
    return replace(step, images={"primary": encode_jpeg(np.zeros((40, 32, 3), np.uint8))})


def not_a_number(k: int, step: Step) -> Step:
    return replace(step, action=np.full(8, np.nan, np.float32))


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (hole, "ERROR: 1 steps do not last 1/10 s; the worst, after record 20, lasts 0.400 s"),
        (standing_clock, "ERROR: stamps do not increase after record 0"),
        (
            degrees,
            "ERROR: state of crane_x7_shoulder_revolute_part_tilt_joint is 22.800 rad in record 0, its",
        ),
        (wild_command, "warning: commanded of crane_x7_shoulder_revolute_part_tilt_joint is 2.418 rad in record 0"),
        (own_state, "ERROR: action is not the state of the next record"),
        (uncommanded, "warning: no action/commanded"),
        (still, "warning: the arm does not move"),
        (frozen_camera, "ERROR: record 26: camera primary shows one and the same picture for 2.0 s"),
        (cut_image, "ERROR: record 7: image of primary: "),
        (sideways, "ERROR: record 0: image of primary is 32 x 40, the metadata say 40 x 32"),
        (not_a_number, "ERROR: record 0 is damaged: action holds a value that is not a finite number\n"),
    ],
)
def test_check_finds_what_would_spoil_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, finding: str
) -> None:
    path = record(tmp_path, change)
    assert main(["check", str(tmp_path)]) == int(finding.startswith("ERROR"))
    assert f"{path}: {finding}" in capsys.readouterr().out


def test_check_finds_damage_and_missed_samples_and_half_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = record(tmp_path)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    slow = record(tmp_path, missed={"primary": 12})
    partial = record(tmp_path, finish=False)
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"{damaged}: ERROR: record 20 is damaged" in out or f"{damaged}: ERROR: record 19 is damaged" in out
    assert "see all with" not in out, "that is what the user has just typed"
    assert f"{slow}: warning: 12 of 40 steps use a distant message of primary" in out
    assert f"{partial}: warning: cut off or being recorded; python -m crane_x7_log.episodes recover {partial}" in out
    assert out.endswith("2 episodes checked: 1 with errors, 2 with warnings\n")


def test_recover_makes_whole_episodes_of_all_that_were_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = record(tmp_path, finish=False)
    second = record(tmp_path, finish=False)
    second.write_bytes(second.read_bytes()[:-5])
    empty = record(tmp_path, finish=False)
    empty.write_bytes(b"")
    assert main(["recover", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"recovered 40 steps: {first}".removesuffix(".partial") in out
    assert f"recovered 39 steps: {second}".removesuffix(".partial") in out
    assert f"not recovered: {empty} holds no whole step; remove {empty.parent}" in out
    assert list_partials(tmp_path) == [empty]
    assert main(["check", str(tmp_path)]) == 0
    assert "warning: recovered: it was cut off" in capsys.readouterr().out


def test_recover_takes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    partial = record(tmp_path, finish=False)
    assert main(["recover", str(partial)]) == 0
    assert "recovered 40 steps" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["show", "check", "recover"])
def test_nothing_there_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, str(tmp_path / "none")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(tmp_path / "none") in captured.err


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    record(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "crane_x7_log.episodes", "show", str(tmp_path)],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, "")
