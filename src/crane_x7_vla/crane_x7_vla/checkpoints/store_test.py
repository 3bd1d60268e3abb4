from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crane_x7_vla.checkpoints.store import BEST, FINAL, CheckpointStore
from crane_x7_vla.errors import CheckpointError


def write(directory: Path) -> None:
    (directory / "lora_adapters").mkdir()
    (directory / "lora_adapters" / "weights").write_bytes(b"w" * 1000)
    (directory / "state").write_text(directory.name)


def test_checkpoints_are_numbered_and_listed_in_order(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    assert store.steps() == []
    for step in (1000, 500, 20):
        assert store.save(step, write) == tmp_path / "run" / f"checkpoint-{step}"
    assert store.steps() == [20, 500, 1000]
    assert (store.path(20) / "lora_adapters" / "weights").stat().st_size == 1000
    assert sorted(path.name for path in store.root.iterdir()) == ["checkpoint-1000", "checkpoint-20", "checkpoint-500"]


def test_links_are_relative_and_move_with_the_run(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    store.save(5, write)
    store.save(6, write)
    assert store.linked(BEST) is None
    store.link(BEST, 5)
    store.link(BEST, 6)
    assert store.linked(BEST) == 6
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert (moved / BEST / "state").is_file()


def test_pruning_keeps_the_newest_and_what_is_linked(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in range(1, 7):
        store.save(step, write)
    store.link(BEST, 2)
    store.prune(0)
    assert store.steps() == [1, 2, 3, 4, 5, 6]
    store.prune(2)
    assert store.steps() == [2, 5, 6]
    store.link(FINAL, 6)
    store.prune(1)
    assert store.steps() == [2, 6]


def test_pruning_keeps_what_was_saved_last_whatever_its_number(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (10, 20, 15):
        store.save(step, write)
    store.prune(1)
    assert store.steps() == [15, 20]


def test_checkpoints_that_a_resumed_run_does_not_follow_are_named_with_what_removes_them(tmp_path: Path) -> None:
    store, other = CheckpointStore(tmp_path / "run"), CheckpointStore(tmp_path / "other")
    for step in (500, 1000):
        store.save(step, write)
    store.check_newest(store.path(1000))
    with pytest.raises(CheckpointError, match=r"run holds checkpoint-1000, .* rm -r .*run/checkpoint-1000$"):
        store.check_newest(store.path(500))
    other.check_newest(store.path(500))
    other.save(100, write)
    with pytest.raises(CheckpointError, match=r"other holds checkpoint-100, "):
        other.check_newest(store.path(500))


def test_resolving_names(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no checkpoint under .*run to resume from"):
        store.resolve("latest")
    with pytest.raises(CheckpointError, match="no checkpoint elsewhere; there is none under"):
        store.resolve("elsewhere")
    store.save(7, write)
    store.link(FINAL, 7)
    assert store.resolve("latest") == store.path(7)
    with pytest.raises(CheckpointError, match=r"is the folder of an experiment; name one .*run/checkpoint-7$"):
        store.resolve(str(store.root))
    assert store.resolve(str(store.root / FINAL)) == store.path(7).resolve()
    with pytest.raises(CheckpointError, match=r"no checkpoint elsewhere; there are: .*checkpoint-7"):
        store.resolve("elsewhere")


def test_a_full_disk_leaves_the_checkpoints_that_were_there(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, write)

    def fail(directory: Path) -> None:
        write(directory)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"no space left under .*the last one is .*checkpoint-1\. Free some"):
        store.save(2, fail)
    assert [path.name for path in store.root.iterdir()] == ["checkpoint-1"]


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise PermissionError(errno.EACCES, "denied")

    with pytest.raises(PermissionError):
        CheckpointStore(tmp_path).save(2, fail)


KILLED = """
import os, signal, sys
from pathlib import Path
from crane_x7_vla.checkpoints import store as module

store = module.CheckpointStore(Path(sys.argv[1]))
calls = 0
def dying(function):
    def call(*arguments, **named):
        global calls
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return function(*arguments, **named)
    return call
for name in ("mkdir", "rename", "replace", "symlink_to"):
    setattr(module.Path, name, dying(getattr(module.Path, name)))
module._sync = dying(module._sync)
module.shutil.rmtree = dying(module.shutil.rmtree)
store.save(2, lambda directory: (directory / "new").write_text("new"))
store.link("checkpoint-best", 2)
"""


def test_a_process_killed_at_any_point_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    """Before every call that changes the disk, with the checkpoint new or replacing one of the same name."""
    for replaces in (False, True):
        for point in range(12):
            store = CheckpointStore(tmp_path / f"{replaces}-{point}")
            store.save(1, write)
            store.link(BEST, 1)
            if replaces:
                store.save(2, write)
            code = subprocess.run(
                [sys.executable, "-c", KILLED, str(store.root), str(point)], check=False, env={**os.environ}
            ).returncode
            assert code in (0, -signal.SIGKILL)
            assert (store.path(1) / "state").is_file()
            assert (store.root / BEST).resolve().is_dir()
            if 2 in store.steps():
                files = {path.name for path in store.path(2).iterdir()}
                assert files == {"new"} or (replaces and files == {"lora_adapters", "state"})
            store.save(3, write)  # tidies up
            hidden = {path.name for path in store.root.iterdir() if path.name.startswith(".")}
            assert hidden <= {f".{BEST}"}
            if replaces:
                assert 2 in store.steps(), "the checkpoint that was being replaced is lost"
            if code == 0:
                assert store.linked(BEST) == 2
                break
        else:
            pytest.fail("more points than were tried")
