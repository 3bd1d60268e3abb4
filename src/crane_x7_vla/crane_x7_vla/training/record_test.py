from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from crane_x7_vla.training import record


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file that a repository tracks."""
    file = tmp_path / "repository" / "package" / "module.py"
    file.parent.mkdir(parents=True)
    file.write_text("one = 1\n")
    git(tmp_path / "repository", "init", "-q")
    git(tmp_path / "repository", "add", ".")
    git(tmp_path / "repository", "commit", "-q", "-m", "one")
    return file


def test_the_commit_is_that_of_the_source_and_changes_are_noted(source: Path) -> None:
    commit = git(source.parent, "rev-parse", "HEAD")
    assert record.git_state(source) == {"commit": commit, "changed": False}
    source.write_text("one = 2\n")
    assert record.git_state(source) == {"commit": commit, "changed": True}


def test_a_package_that_is_installed_inside_a_foreign_repository_has_no_commit(source: Path) -> None:
    installed = source.parents[1] / ".venv" / "module.py"
    installed.parent.mkdir()
    installed.write_text("one = 1\n")
    assert record.git_state(installed) is None


def test_git_that_hangs_does_not_end_the_training(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("git", 10)

    monkeypatch.setattr(record.subprocess, "run", hang)
    assert record.git_state(source) is None
