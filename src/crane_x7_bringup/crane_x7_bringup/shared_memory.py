"""What killed ROS processes leave in /dev/shm (half a megabyte each), removed.

Fast DDS holds a lock (flock) on ``<name>_el`` or ``<name>_sl`` as long as a process uses ``<name>``; a killed process
cannot remove its files, but its locks are gone. ``fastdds shm clean`` does the same and needs the Fast DDS tools.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

# A starting process makes the file a moment before it locks it.
_YOUNG_S = 10.0
_PREFIXES = ("fastrtps_", "fastdds_")
_LOCKS = ("_el", "_sl")


def clean_shared_memory(folder: Path = Path("/dev/shm")) -> int:
    """Remove this user's Fast DDS files that no process uses; returns the number of bytes freed."""
    freed = 0
    if not folder.is_dir():
        return freed
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(_PREFIXES) or path.name.endswith(_LOCKS):
            continue
        files = [path, *(path.with_name(path.name + lock) for lock in _LOCKS)]
        if all(_unused(file) for file in files):
            files.append(path.with_name(f"sem.{path.name}_mutex"))
            freed += sum(_remove(file) for file in files)
    return freed


def _unused(path: Path) -> bool:
    """Whether the file is ours, old enough, and not locked; a file that is not there is unused."""
    try:
        status = path.stat()
        if status.st_uid != os.getuid() or time.time() - status.st_ctime < _YOUNG_S:
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove(path: Path) -> int:
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size
