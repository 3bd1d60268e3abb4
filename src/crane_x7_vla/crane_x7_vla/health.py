"""Whether a running node gets what it needs: each tells it in a small file, so that nobody has to join ROS to ask.

A node writes ``<folder>/<node>.json`` each second from the thread that handles its messages; a node that hangs is told
by the age of its file.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

STATUS_DIR = "CRANE_X7_STATUS_DIR"
"""Environment variable that names the folder; without it nodes write nothing."""

PERIOD_S = 1.0
_STALE_S = 5.0


def report(folder: Path, node: str, lacks: str | None) -> None:
    """Say what ``node`` lacks, None when nothing. A disk that is full must not stop an arm, so nothing is raised."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{node}.json"
        unfinished.write_text(json.dumps({"lacks": lacks}), encoding="utf-8")
        os.replace(unfinished, folder / f"{node}.json")


def forget(folder: Path, node: str) -> None:
    """The node ends."""
    with contextlib.suppress(OSError):
        (folder / f"{node}.json").unlink(missing_ok=True)


def problem(folder: Path, node: str) -> str | None:
    """Why ``node`` is not healthy, in one line, None when it is."""
    path = folder / f"{node}.json"
    try:
        age = time.time() - path.stat().st_mtime
        lacks = json.loads(path.read_text(encoding="utf-8"))["lacks"]
    except FileNotFoundError:
        return f"{node} is not running yet"
    if age > _STALE_S:
        return f"{node} has not said anything for {age:.0f} s; it hangs, or it was killed"
    return None if lacks is None else f"{node} is waiting: {lacks}"
