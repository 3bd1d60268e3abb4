"""Folders that one run at a time may write to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from crane_x7_vla.errors import ConfigError


@contextmanager
def claimed(*folders: Path) -> Iterator[tuple[int, ...]]:
    """Make the folders and hold a lock on each, which the kernel releases however the process ends.

    Gives the open files of the locks; a child that inherits them holds the locks until it has ended, too.
    Raises ConfigError when another process holds one of them.
    """
    locks: list[int] = []
    with ExitStack() as stack:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            locks.append(descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another demo is writing to {folder}; wait for it, stop it, or give this one folders of its own: "
                    "python -m crane_x7_bringup.demo --data-root DIR --output-dir DIR"
                ) from error
        yield tuple(locks)
