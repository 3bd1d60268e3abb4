"""Runs a program that ends when its parent does, even by SIGKILL: a node of the supervisor, or a command.

python -m crane_x7_bringup.child node PARENT PACKAGE EXECUTABLE [ARGUMENT …]
python -m crane_x7_bringup.child command PARENT [ARGUMENT OF PYTHON …]
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable, Sequence

from crane_x7_vla.errors import ConfigError

_MODULE = "crane_x7_bringup.child"
_PR_SET_PDEATHSIG = 1


def node_command(package: str, executable: str, arguments: Sequence[str]) -> list[str]:
    """Command line of a console script of a package; it is killed when this process ends."""
    return [sys.executable, "-m", _MODULE, "node", str(os.getpid()), package, executable, *arguments]


def python_command(arguments: Sequence[str]) -> list[str]:
    """Command line of ``python ARGUMENT …``; it gets SIGTERM when this process ends, so that it can save."""
    return [sys.executable, "-m", _MODULE, "command", str(os.getpid()), *arguments]


def ending(returncode: int) -> tuple[int, str]:
    """How a process ended, by subprocess's return code: the code that a shell would report, and words for it."""
    if returncode >= 0:
        return returncode, f"exit code {returncode}"
    name = signal.Signals(-returncode).name
    return 128 - returncode, f"signal {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"


def entry_point(package: str, executable: str) -> importlib.metadata.EntryPoint:
    """The console script ``executable`` of the installed ``package``; raises ConfigError saying how to install it."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"package {package} is not installed in {sys.prefix}; type: make setup (or pip install -e src/{package})"
        ) from error
    scripts = {point.name: point for point in distribution.entry_points if point.group == "console_scripts"}
    if executable not in scripts:
        raise ConfigError(
            f"package {package} has no executable '{executable}'; it has: {', '.join(sorted(scripts)) or 'none'}. "
            f"After an update type: make setup (or pip install -e src/{package})"
        )
    return scripts[executable]


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Have the kernel send the signal when ``parent`` ends (Linux, prctl(2)); leave at once if it already has.

    What this process becomes by exec keeps it. ``parent`` must have started it from its main thread.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Become the node or the command."""
    kind, parent, *words = sys.argv[1:]
    if kind == "command":
        end_with_parent(int(parent), signal.SIGTERM)
        os.execv(sys.executable, [sys.executable, *words])
    package, executable, *arguments = words
    end_with_parent(int(parent), signal.SIGKILL)
    # Until the node has its own handlers a signal just ends it; importing torch takes seconds.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    node_main: Callable[[], int | None] = entry_point(package, executable).load()
    sys.argv = [executable, *arguments]
    sys.exit(node_main())


if __name__ == "__main__":
    main()
