"""A file with one JSON line per finished piece of work, so that a run may be stopped at any moment and gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Entry = Mapping[str, Any]

_HEADER = "journal of"


def begin_journal(path: Path, subject: Entry) -> None:
    """Make sure that the journal at ``path`` is that of ``subject``; one of another subject is started anew."""
    header = {_HEADER: dict(subject)}
    lines = _lines(path)
    if not lines or lines[0] != header:
        path.unlink(missing_ok=True)
        append_entry(path, header)


def read_journal(path: Path) -> list[Entry]:
    """The whole entries so far; none where there is no file."""
    return [line for line in _lines(path) if _HEADER not in line]


def append_entry(path: Path, entry: Entry) -> None:
    """Add a line and bring it to the disk; what an interrupted writer left of a line is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(len(_whole(path)))
        file.write(json.dumps(dict(entry)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path) -> list[Entry]:
    return [json.loads(line) for line in _whole(path).splitlines()]


def _whole(path: Path) -> bytes:
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]
