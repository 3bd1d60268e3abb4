"""Files of model directories: whether one is there, and JSON objects, read by the type that each value should have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from crane_x7_vla.errors import CheckpointError

T = TypeVar("T")

_POINTER = b"version https://git-lfs"
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a table"}


def require_file(path: Path) -> None:
    """Raise CheckpointError where a file is missing, or is what git leaves in place of one that it did not fetch."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent} lacks {path.name}; is it a complete model directory?")
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                f"{path} is git-lfs's pointer to the file and not the file; fetch it with: git lfs pull, in "
                f"{path.parent}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError naming the file."""
    require_file(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy the model again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; copy the model again")
    return value


def value_of(table: Mapping[str, Any], key: str, kind: type[T], least: float | None = None, *, source: object) -> T:
    """A value of a JSON object, of this type and at least ``least``. source: the file, for messages.

    Whole numbers are numbers, too. Raises CheckpointError naming file and key.
    """
    if key not in table:
        raise CheckpointError(f"{source} lacks {key}; is it of another kind of model?")
    return _checked(table[key], key, kind, least, source)


def list_of(
    table: Mapping[str, Any], key: str, kind: type[T], least: float | None = None, *, source: object
) -> tuple[T, ...]:
    """A list of such values, see ``value_of``."""
    values = value_of(table, key, list, source=source)
    return tuple(_checked(value, f"{key}[{index}]", kind, least, source) for index, value in enumerate(values))


def _checked(value: Any, name: str, kind: type[T], least: float | None, source: object) -> T:
    if not _is_a(value, kind):
        raise CheckpointError(f"{source}: {name} is {value!r}; expected {_WORDS[kind]}")
    if least is not None and not value >= least:
        raise CheckpointError(f"{source}: {name} is {value!r}; expected {least:g} or more")
    return value


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
