"""The suite's commands as the demo runs them: one after the other in the terminal, or workers side by side."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from crane_x7_bringup.child import ending, python_command
from crane_x7_bringup.demo.journal import Entry, read_journal
from crane_x7_vla.command import INTERRUPTED

_POLL_S = 0.2
# How long a command may take to save after Ctrl-C, s; a second Ctrl-C does not wait.
_PATIENCE_S = 60.0


class StageFailedError(RuntimeError):
    """A command of the demo ended with an error; it has said why. code: what a shell would report."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Worker:
    """A command that writes a line into its journal for each piece of work. log: gets its output."""

    arguments: Sequence[str]
    journal: Path
    log: Path


def run_command_line(arguments: Sequence[str], console: Console, *, locks: Sequence[int] = ()) -> None:
    """``python ARGUMENT …`` as a user would run it, its output in the terminal; raises StageFailedError.

    locks: open files that are to stay open until the command has ended, even when this process has not lived so long.
    """
    _show(arguments, console)
    # In a session of its own: Ctrl-C comes to this process alone, which gives the command time to save.
    process = subprocess.Popen(python_command(arguments), start_new_session=True, pass_fds=locks)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(_PATIENCE_S)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        code, how = ending(code)
        raise StageFailedError(f"{arguments[1]} ended with {how}; its last lines above say why", code)


def run_workers(
    what: str,
    workers: Sequence[Worker],
    total: int,
    console: Console,
    *,
    count: Callable[[Sequence[Entry]], int],
    locks: Sequence[int] = (),
) -> None:
    """Run workers side by side until all have ended, with a progress bar from their journals.

    count: how much of ``total`` the entries of a journal are. locks: as for ``run_command_line``.
    Raises StageFailedError when one fails.
    """

    def done() -> int:
        return sum(count(read_journal(worker.journal)) for worker in workers)

    if done() >= total:
        console.print(f"{what}: done before ({done()})")
        return
    processes: list[subprocess.Popen[bytes]] = []
    failed: list[subprocess.Popen[bytes]] = []
    for worker in workers:
        _show(worker.arguments, console)
    try:
        processes.extend(_start(worker, locks) for worker in workers)
        with _progress(console) as progress:
            bar = progress.add_task(what, total=total)
            while True:
                running = [process for process in processes if process.poll() is None]
                progress.update(bar, completed=done())
                failed = [process for process in processes if process.returncode]
                if failed or not running:
                    break
                time.sleep(_POLL_S)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()
    # Those that were stopped because another failed are not to blame.
    for process, worker in zip(processes, workers, strict=True):
        if process in failed:
            lines = worker.log.read_text(errors="replace").strip().splitlines()
            code, said = ending(process.returncode)
            if process.returncode > 0 and lines:  # one that was killed had no time to say why
                said = lines[-1].removeprefix("error: ")
            raise StageFailedError(f"{what}: {said} (log: {worker.log})", code)


def _start(worker: Worker, locks: Sequence[int]) -> subprocess.Popen[bytes]:
    worker.log.parent.mkdir(parents=True, exist_ok=True)
    with worker.log.open("wb") as file:
        return subprocess.Popen(
            python_command(worker.arguments),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=locks,
            start_new_session=True,  # Ctrl-C comes to this process alone, which ends them in order
        )


def _show(arguments: Sequence[str], console: Console) -> None:
    """Print a command as it could be typed."""
    line = f"$ python {shlex.join(arguments)}"
    console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
