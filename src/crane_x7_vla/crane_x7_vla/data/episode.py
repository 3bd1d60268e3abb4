# pyright: strict, reportMissingTypeStubs=false
"""Episodes on disk: ``episode_N/episode_N.tfrecord``, one record per step, and ``episode_metadata.json`` beside it.

An episode being written is ``episode_N.tfrecord.partial``; the rename to ``.tfrecord`` is its last act, so a file of
that name is whole. Readers see only whole episodes; ``recover_episode`` makes one of what an interrupted one holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crane_x7_vla.data.episode_writer import (
    MIN_FREE_BYTES,
    PARTIAL_SUFFIX,
    DiskFullError,
    EpisodeWriter,
    check_folder,
    recover_episode,
)
from crane_x7_vla.data.metadata import METADATA_NAME, CameraMetadata, EpisodeMetadata, read_metadata, set_success
from crane_x7_vla.data.step import (
    SCHEMA_VERSION,
    STATE_SOURCE,
    NewerSchemaError,
    Step,
    decode_jpeg,
    decode_step,
    encode_jpeg,
    has_stamp,
    jpeg_size,
)
from crane_x7_vla.data.tfrecord import DamagedFileError, RecordFile
from crane_x7_vla.errors import DataError

__all__ = [
    "MIN_FREE_BYTES",
    "SCHEMA_VERSION",
    "STATE_SOURCE",
    "CameraMetadata",
    "DiskFullError",
    "Episode",
    "EpisodeFile",
    "EpisodeMetadata",
    "EpisodeWriter",
    "Step",
    "check_folder",
    "decode_jpeg",
    "encode_jpeg",
    "jpeg_size",
    "list_episodes",
    "list_partials",
    "read_episode",
    "recover_episode",
    "remedy",
    "set_success",
]

RECORD_HINT = "record some with: ros2 launch crane_x7_log recorder.launch.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A whole episode in memory.

    images: {camera: N JPEGs}, empty when read without. state, action: float32 [N, S] rad. commanded: float32 [N, S] rad
    or None unless every step has it. stamp: float64 [N] s. robot, hz: None for files of others that do not say.
    """

    images: Mapping[str, list[bytes]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    commanded: NDArray[np.float32] | None
    stamp: NDArray[np.float64]
    instruction: str
    robot: str | None
    hz: float | None
    schema_version: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeArrays:
    """The numbers of an episode, shapes and units as in ``Episode``."""

    state: NDArray[np.float32]
    action: NDArray[np.float32]
    commanded: NDArray[np.float32] | None
    stamp: NDArray[np.float64]


def remedy(path: Path) -> str:
    """The end of every message about an episode that cannot be used: what to do, and what to type.

    A folder of the episode's own name is removed as a whole; others may hold more than this episode.
    """
    own_folder = path.parent.name == path.stem
    remove, root = (path.parent, path.parent.parent) if own_folder else (path, path.parent)
    return f"; copy it again, or remove {remove}; see all with: python -m crane_x7_log.episodes check {root}"


class EpisodeFile:
    """Random access to the steps of one episode without holding its images; may go to worker processes.

    metadata: None for files of others. Raises DataError naming the file, the record where one is wrong, and the
    ``remedy``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._records = RecordFile(path)
        except DamagedFileError as error:
            raise DataError(f"{error}{remedy(path)}") from error
        try:
            self.metadata = read_metadata(path.parent / METADATA_NAME)
        except NewerSchemaError:
            raise
        except DataError as error:
            raise DataError(f"{error}{remedy(path)}") from error
        if len(self._records) == 0:
            raise self._unusable("it holds no steps")
        if self.metadata is not None and self.metadata.n_steps != len(self._records):
            raise self._unusable(
                f"it holds {len(self._records)} steps, its {METADATA_NAME} says {self.metadata.n_steps}"
            )
        first = self._payload(0)
        self._first = self._decode(0, first)
        self.has_stamps = has_stamp(first)
        """Whether the file says when its steps were; without, their stamps only number them."""

    def __len__(self) -> int:
        return len(self._records)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, sorted."""
        return tuple(sorted(self._first.images))

    @property
    def instruction(self) -> str:
        return self._first.instruction

    @property
    def hz(self) -> float | None:
        return None if self.metadata is None else self.metadata.hz

    def step(self, index: int) -> Step:
        """Step ``index`` >= 0; raises IndexError beyond the end."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} steps, not one of index {index}")
        return self._checked(index, self._decode(index, self._payload(index)))

    def steps(self) -> Iterator[Step]:
        """All steps in order, one in memory at a time."""
        try:
            for index, payload in enumerate(self._records):
                yield self._checked(index, self._decode(index, payload))
        except DamagedFileError as error:
            raise DataError(f"{error}{remedy(self.path)}") from error

    def arrays(self) -> EpisodeArrays:
        """State, action, commanded and stamp of all steps; reads the whole file once and keeps no image."""
        return _stack([replace(step, images={}) for step in self.steps()])

    def _payload(self, index: int) -> bytes:
        try:
            return self._records[index]
        except DamagedFileError as error:
            raise DataError(f"{error}{remedy(self.path)}") from error

    def _decode(self, index: int, payload: bytes) -> Step:
        try:
            return decode_step(payload, index=index, hz=self.hz)
        except NewerSchemaError as error:
            raise DataError(f"{self.path}: record {index}: {error}") from error
        except DataError as error:
            raise self._unusable(f"record {index}: {error}") from error

    def _checked(self, index: int, step: Step) -> Step:
        """The step, if it goes with the metadata and with record 0."""
        problem = self._problem(step)
        if problem is not None:
            raise self._unusable(f"record {index} {problem}")
        return step

    def _problem(self, step: Step) -> str | None:
        if self.metadata is not None and step.state.size != len(self.metadata.joint_names):
            return (
                f"has {step.state.size} values of observation/state, expected {len(self.metadata.joint_names)}: "
                + ", ".join(self.metadata.joint_names)
            )
        if step.state.size != self._first.state.size:
            return f"has {step.state.size} joints, record 0 has {self._first.state.size}"
        if step.images.keys() != self._first.images.keys():
            return f"has cameras {sorted(step.images)}, record 0 has {sorted(self._first.images)}"
        if step.instruction != self._first.instruction:
            return f"has another instruction ('{step.instruction}') than record 0 ('{self._first.instruction}')"
        for name, value in (("state", step.state), ("action", step.action), ("action/commanded", step.commanded)):
            if value is not None and not np.isfinite(value).all():
                return f"is damaged: {name} holds a value that is not a finite number"
        return None

    def _unusable(self, problem: str) -> DataError:
        return DataError(f"{self.path}: {problem}{remedy(self.path)}")


def read_episode(path: Path, *, load_images: bool = True) -> Episode:
    """A whole episode. Raises DataError naming the file, the record and what is wrong."""
    file = EpisodeFile(path)
    steps: list[Step] = []
    images: dict[str, list[bytes]] = {camera: [] for camera in file.cameras} if load_images else {}
    for step in file.steps():
        for camera, kept in images.items():
            kept.append(step.images[camera])
        steps.append(replace(step, images={}))
    arrays = _stack(steps)
    return Episode(
        images=images,
        state=arrays.state,
        action=arrays.action,
        commanded=arrays.commanded,
        stamp=arrays.stamp,
        instruction=file.instruction,
        robot=None if file.metadata is None else file.metadata.robot,
        hz=file.hz,
        schema_version=SCHEMA_VERSION if file.metadata is None else file.metadata.schema_version,
        path=path,
    )


def _stack(steps: list[Step]) -> EpisodeArrays:
    commanded = [step.commanded for step in steps if step.commanded is not None]
    return EpisodeArrays(
        state=np.stack([step.state for step in steps]),
        action=np.stack([step.action for step in steps]),
        commanded=np.stack(commanded) if len(commanded) == len(steps) else None,
        stamp=np.array([step.stamp for step in steps], np.float64),
    )


def list_episodes(root: Path) -> list[Path]:
    """Whole episodes under ``root`` (or the one file), episode_2 before episode_10. Raises DataError when none."""
    if root.is_file():
        return [root]
    found = sorted(root.rglob("*.tfrecord"), key=_natural)
    if not found:
        partials = list_partials(root)
        if partials:
            raise DataError(
                f"no whole episodes under {root}, but {len(partials)} that were cut off. "
                f"Recover them with: python -m crane_x7_log.episodes recover {root}"
            )
        raise DataError(f"no episodes under {root}. Expected episode_*/episode_*.tfrecord; {RECORD_HINT}")
    return found


def list_partials(root: Path) -> list[Path]:
    """Episodes under ``root`` that were cut off or are being recorded, in natural order."""
    return sorted(root.rglob(f"*.tfrecord{PARTIAL_SUFFIX}"), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]
