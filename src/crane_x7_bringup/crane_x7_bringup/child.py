"""Runs one node under the supervisor: ``python -m crane_x7_bringup.child PARENT PACKAGE EXECUTABLE [ARGUMENT …]``.

The same as the package's console script, with one promise more: it ends when its parent does, even by SIGKILL.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable

from crane_x7_vla.errors import ConfigError

_PR_SET_PDEATHSIG = 1


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


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends (Linux, prctl(2)); leave at once if it already has."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Become the node."""
    parent, package, executable, *arguments = sys.argv[1:]
    end_with_parent(int(parent))
    # Until the node has its own handlers a signal just ends it; importing torch takes seconds.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    node_main: Callable[[], int | None] = entry_point(package, executable).load()
    sys.argv = [executable, *arguments]
    sys.exit(node_main())


if __name__ == "__main__":
    main()
