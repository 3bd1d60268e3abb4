"""What nodes tell of themselves by a file."""

from __future__ import annotations

import os
import time
from pathlib import Path

from crane_x7_vla import health


def test_a_node_that_lacks_nothing_is_healthy(tmp_path: Path) -> None:
    health.report(tmp_path / "made", "recorder", None)
    assert health.problem(tmp_path / "made", "recorder") is None


def test_what_a_node_lacks_is_told_and_forgotten_when_it_has_come(tmp_path: Path) -> None:
    health.report(tmp_path, "recorder", "camera primary")
    assert health.problem(tmp_path, "recorder") == "recorder is waiting: camera primary"
    health.report(tmp_path, "recorder", None)
    assert health.problem(tmp_path, "recorder") is None


def test_a_node_that_never_ran_or_has_ended_is_not_healthy(tmp_path: Path) -> None:
    assert health.problem(tmp_path, "sim") == "sim is not running yet"
    health.report(tmp_path, "sim", None)
    health.forget(tmp_path, "sim")
    assert health.problem(tmp_path, "sim") == "sim is not running yet"


def test_a_node_that_hangs_is_not_healthy(tmp_path: Path) -> None:
    health.report(tmp_path, "sim", None)
    old = time.time() - 60
    os.utime(tmp_path / "sim.json", (old, old))
    assert "has not said anything for 60 s" in str(health.problem(tmp_path, "sim"))


def test_a_folder_that_cannot_be_written_does_not_stop_a_node(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    health.report(tmp_path / "file", "sim", None)
