from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from crane_x7_bringup import shared_memory
from crane_x7_bringup.shared_memory import clean_shared_memory


def make(folder: Path, name: str) -> Path:
    for file in (name, f"{name}_el", f"sem.{name}_mutex"):
        (folder / file).write_bytes(b"12345678")
    return folder / name


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_unused_files_go_and_everything_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_YOUNG_S", 0.0)
    dead = make(tmp_path, "fastrtps_0123456789abcdef")
    make(tmp_path, "fastdds_port7411")
    live = make(tmp_path, "fastrtps_port7413")
    (tmp_path / "somebody_elses").touch()
    with (tmp_path / f"{live.name}_el").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert clean_shared_memory(tmp_path) == 2 * 24
        assert names(tmp_path) == {live.name, f"{live.name}_el", f"sem.{live.name}_mutex", "somebody_elses"}
    assert not dead.exists()
    assert clean_shared_memory(tmp_path) == 24
    assert names(tmp_path) == {"somebody_elses"}


def test_a_file_that_was_just_made_stays(tmp_path: Path) -> None:
    make(tmp_path, "fastrtps_port7411")
    assert clean_shared_memory(tmp_path) == 0
    assert len(names(tmp_path)) == 3
    assert os.stat(tmp_path / "fastrtps_port7411").st_ctime <= time.time()


def test_a_machine_without_the_folder(tmp_path: Path) -> None:
    assert clean_shared_memory(tmp_path / "none") == 0
