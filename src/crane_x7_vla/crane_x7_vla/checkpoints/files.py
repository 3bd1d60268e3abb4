"""Files of model directories: JSON objects, read by the type that a value should have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crane_x7_vla.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} lacks {path.name}; is it a complete model directory?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy the model again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; copy the model again")
    return value
