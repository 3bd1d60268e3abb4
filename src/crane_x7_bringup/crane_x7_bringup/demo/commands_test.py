from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from crane_x7_bringup.child import python_command
from crane_x7_bringup.demo.commands import StageFailedError, Worker, run_command_line, run_workers
from crane_x7_bringup.demo.journal import append_entry


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_a_command_that_fails_gives_its_code_and_one_that_was_interrupted_interrupts() -> None:
    run_command_line(["-c", "pass"], quiet())
    with pytest.raises(StageFailedError) as failed:
        run_command_line(["-c", "raise SystemExit(7)"], quiet())
    assert failed.value.code == 7
    with pytest.raises(KeyboardInterrupt):
        run_command_line(["-c", "raise SystemExit(130)"], quiet())


def test_a_command_ends_when_what_started_it_is_killed(tmp_path: Path) -> None:
    program = """
        import signal, sys, time
        from pathlib import Path
        def end(*_):
            Path(sys.argv[1]).write_text("saved")
            sys.exit()
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        time.sleep(60)
    """
    starter = """
        import sys
        from rich.console import Console
        from crane_x7_bringup.demo.commands import run_command_line
        run_command_line(["-c", *sys.argv[1:]], Console(stderr=True))
    """
    saved = tmp_path / "saved"
    words = ["-c", textwrap.dedent(starter), textwrap.dedent(program), str(saved)]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    # The command has the same standard output, which ends with it.
    process.communicate(timeout=30)
    assert saved.read_text() == "saved"


def test_a_command_whose_parent_is_gone_before_it_looks_does_not_start() -> None:
    command = [*python_command(["-c", "print('started')"])]
    command[command.index("command") + 1] = "0"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_worker_that_fails_ends_the_others_and_is_the_one_to_blame(tmp_path: Path) -> None:
    waits = Worker(["-c", "import time; time.sleep(60)"], tmp_path / "a.jsonl", tmp_path / "a.txt")
    fails = Worker(["-c", "import sys; sys.exit('error: no cube')"], tmp_path / "b.jsonl", tmp_path / "b.txt")
    with pytest.raises(StageFailedError, match=r"trying: no cube \(log: .*b\.txt\)") as failed:
        run_workers("trying", [waits, fails], 2, quiet(), count=len)
    assert failed.value.code == 1


def test_what_the_journals_have_is_not_done_again(tmp_path: Path) -> None:
    append_entry(tmp_path / "a.jsonl", {"seed": 1})
    console = quiet()
    worker = Worker(["-c", "raise SystemExit(1)"], tmp_path / "a.jsonl", tmp_path / "a.txt")
    run_workers("trying", [worker], 1, console, count=len)
    assert "trying: done before (1)" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
