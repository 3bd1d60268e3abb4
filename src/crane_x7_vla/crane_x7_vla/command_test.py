"""Exit codes and the one line of errors that users can mend."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crane_x7_vla.command import run_command
from crane_x7_vla.errors import CheckpointError, ConfigError, DataError


def _raising(error: BaseException) -> int:
    raise error


def test_the_code_of_a_command_that_worked_is_its_own() -> None:
    assert run_command(lambda: 0) == 0
    assert run_command(lambda: 3) == 3


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError])
def test_an_error_of_the_user_is_one_line_and_2(kind: type[ValueError], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: _raising(kind("what is wrong; what to type"))) == 2
    assert capsys.readouterr().err == "error: what is wrong; what to type\n"


def test_ctrl_c_is_one_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: _raising(KeyboardInterrupt()), interrupted="stopped; go on with: x") == 130
    assert capsys.readouterr().err == "stopped; go on with: x\n"


def test_a_full_disk_names_the_file_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/data/out.json")
    assert run_command(lambda: _raising(full)) == 2
    assert capsys.readouterr().err.startswith("error: /data/out.json: No space left on device; free some space")


def test_a_file_in_the_place_of_a_folder_is_the_users_to_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outputs").write_text("")
    assert run_command(lambda: (tmp_path / "outputs" / "a").write_text("")) == 2
    assert "a file is where a folder is needed" in capsys.readouterr().err
    assert run_command(lambda: (tmp_path / "outputs").mkdir(exist_ok=True) or 0) == 2
    assert "a file is where a folder is needed" in capsys.readouterr().err


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ValueError, match="bug"):
        run_command(lambda: _raising(ValueError("bug")))
    with pytest.raises(FileNotFoundError):
        run_command(lambda: _raising(FileNotFoundError(errno.ENOENT, "no such file", "x")))


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_a_command_without_a_word(unbuffered: str) -> None:
    program = "from crane_x7_vla.command import run_command; import sys;"
    program += "sys.exit(run_command(lambda: [print('line', i) for i in range(100_000)] and 0))"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{program}" | head -1; exit ${{PIPESTATUS[0]}}'],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    assert (done.stdout, done.stderr, done.returncode) == ("line 0\n", "", 141)


def test_a_broken_pipe_to_somebody_else_is_not_taken_for_that_of_standard_output() -> None:
    """Such as a server that has gone, or a worker process."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with pytest.raises(BrokenPipeError):
            run_command(lambda: os.write(writer, b"x"))
    finally:
        os.close(writer)
