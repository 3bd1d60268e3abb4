"""The simulated arm, the expert and a recorder with nobody at the keyboard: ``up log-sim recorder.num_episodes:=2``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crane_x7_log.checks import check_episode
from crane_x7_vla.data.episode import EpisodeFile, list_episodes
from crane_x7_vla.data.metadata import METADATA_NAME, read_metadata

pytestmark = pytest.mark.ros

# The expert's quickest pick takes longer, so an episode of fewer steps lacks its beginning.
MIN_STEPS = 25


def up(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "crane_x7_bringup.up", "log-sim", f"output_dir:={tmp_path / 'data'}", *words]
    return subprocess.run(
        [*command, "--log-dir", str(tmp_path / "log")], capture_output=True, text=True, check=False, timeout=180
    )


@pytest.mark.parametrize("lockstep", ["false", "true"])
def test_so_many_scenes_are_recorded_one_after_the_other_and_then_all_ends(tmp_path: Path, lockstep: str) -> None:
    # Joint states that are late do not matter here, and come on a machine that is busy.
    done = up(
        tmp_path, "recorder.num_episodes:=2", "seed:=40", f"lockstep:={lockstep}", "recorder.joint_max_age_s:=2.0"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    paths = list_episodes(tmp_path / "data")
    assert len(paths) == 2
    seeds = []
    for path in paths:
        assert [finding for finding in check_episode(path) if finding.is_error] == []
        metadata = read_metadata(path.parent / METADATA_NAME)
        assert metadata is not None
        assert metadata.success is True
        seeds.append(metadata.seed)
        assert len(EpisodeFile(path).arrays().state) > MIN_STEPS
    assert seeds == [41, 42]
