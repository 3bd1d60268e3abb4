from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from rich.console import Console

from crane_x7_bringup.child import python_command
from crane_x7_bringup.demo.claim import claimed
from crane_x7_bringup.demo.commands import StageFailedError, Worker, run_command_line, run_workers
from crane_x7_bringup.demo.journal import append_entry
from crane_x7_vla.errors import ConfigError


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


def test_a_command_that_was_killed_says_by_which_signal(tmp_path: Path) -> None:
    kill = ["-c", "import os; print('step 3', flush=True); os.kill(os.getpid(), 9)"]
    with pytest.raises(StageFailedError, match=r"ended with signal SIGKILL \(out of memory\?\)") as failed:
        run_command_line(kill, quiet())
    assert failed.value.code == 137
    worker = Worker(kill, tmp_path / "a.jsonl", tmp_path / "a.txt")
    with pytest.raises(StageFailedError, match=r"trying: signal SIGKILL \(out of memory\?\) \(log: .*a\.txt") as failed:
        run_workers("trying", [worker], 1, quiet(), count=len)
    assert failed.value.code == 137


@pytest.mark.parametrize("side_by_side", [False, True])
def test_folders_stay_claimed_until_the_last_command_has_ended(side_by_side: bool, tmp_path: Path) -> None:
    """What started it is killed, and it still saves."""
    program = """
        import signal, sys, time
        from pathlib import Path
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(sys.argv[1], "ready").touch()
        while Path(sys.argv[1], "ready").exists():
            time.sleep(0.05)
    """
    starter = """
        import sys
        from pathlib import Path
        from rich.console import Console
        from crane_x7_bringup.demo.claim import claimed
        from crane_x7_bringup.demo.commands import Worker, run_command_line, run_workers
        words, folder = ["-c", *sys.argv[2:]], Path(sys.argv[3])
        with claimed(folder) as locks:
            if sys.argv[1] == "True":
                worker = Worker(words, folder / "journal", folder / "log")
                run_workers("saving", [worker], 1, Console(), count=len, locks=locks)
            else:
                run_command_line(words, Console(), locks=locks)
    """
    words = ["-c", textwrap.dedent(starter), str(side_by_side), textwrap.dedent(program), str(tmp_path)]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    ready = tmp_path / "ready"
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    with pytest.raises(ConfigError, match="another demo is writing"), claimed(tmp_path):
        pass
    ready.unlink()
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # comes as soon as the command has ended
    os.close(descriptor)


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
