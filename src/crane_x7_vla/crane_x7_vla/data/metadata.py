# pyright: strict, reportMissingTypeStubs=false
"""``episode_metadata.json``: what is known about an episode besides its steps."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from crane_x7_vla.data.step import SCHEMA_VERSION, NewerSchemaError
from crane_x7_vla.errors import DataError

METADATA_NAME = "episode_metadata.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraMetadata:
    """Size in pixels of a camera's images, and where they came from."""

    width: int
    height: int
    topic: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeMetadata:
    """What is known about an episode besides its steps.

    hz: steps per second. missed: per source, steps whose nearest message was further away than the tolerance.
    dropped: per source, messages that could not be used. success: by the operator or the simulator, None for unsaid.
    end_reason: why it ended. recovered: it was cut off and holds what was on disk. started_at: ISO 8601.
    """

    robot: str
    hz: float
    instruction: str
    cameras: Mapping[str, CameraMetadata]
    joint_names: tuple[str, ...]
    image_encoding: str = "rgb"
    image_format: str = "jpeg"
    jpeg_quality: int = 95
    schema_version: int = SCHEMA_VERSION
    n_steps: int = 0
    started_at: str = ""
    success: bool | None = None
    missed: Mapping[str, int] = field(default_factory=dict[str, int])
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    seed: int | None = None
    end_reason: str = ""
    recovered: bool = False

    def __post_init__(self) -> None:
        if not self.hz > 0:
            raise ValueError(f"hz must be positive, got {self.hz}")
        if not self.joint_names:
            raise ValueError("joint_names is empty")


def write_metadata(target: Path, metadata: EpisodeMetadata) -> None:
    """Replace the file by one on the disk; raises OSError."""
    temporary = target.with_name(f".{target.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(asdict(metadata), file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    sync_folder(target.parent)


def read_metadata(path: Path) -> EpisodeMetadata | None:
    """None when there is none or it is another project's (no schema_version). Raises DataError when it is damaged."""
    if not path.exists():
        return None
    try:
        loaded: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(loaded, dict) or "schema_version" not in loaded:
        return None
    raw = cast("dict[str, Any]", loaded)
    try:
        if raw["schema_version"] > SCHEMA_VERSION:
            raise NewerSchemaError(
                f"{path}: schema_version {raw['schema_version']} is newer than {SCHEMA_VERSION}, "
                "update the suite to read it"
            )
        raw["cameras"] = {name: CameraMetadata(**camera) for name, camera in raw["cameras"].items()}
        raw["joint_names"] = tuple(raw["joint_names"])
        known = {item.name for item in fields(EpisodeMetadata)}
        return EpisodeMetadata(**{key: value for key, value in raw.items() if key in known})
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def set_success(path: Path, success: bool) -> None:
    """Say of a whole episode whether the task was done. Raises DataError when it has no metadata."""
    target = path.parent / METADATA_NAME
    metadata = read_metadata(target)
    if metadata is None:
        raise DataError(f"{target} is missing or not of this suite, success cannot be noted")
    try:
        write_metadata(target, replace(metadata, success=success))
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Bring renames and new names in ``folder`` to the disk; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
