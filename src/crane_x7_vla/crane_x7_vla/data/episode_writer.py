# pyright: strict, reportMissingTypeStubs=false
"""Writing an episode so that nothing half looks whole and nothing whole is lost, and recovering an interrupted one."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from crane_x7_vla.data.metadata import METADATA_NAME, EpisodeMetadata, read_metadata, sync_folder, write_metadata
from crane_x7_vla.data.step import Step, encode_step
from crane_x7_vla.data.tfrecord import masked_crc, scan_records, write_record
from crane_x7_vla.errors import DataError

PARTIAL_SUFFIX = ".partial"
SYNC_INTERVAL_S = 0.5
"""Half of what is promised (at most a second is lost to a power cut), as a step may be late."""

MIN_FREE_BYTES = 64 * 1024 * 1024
"""Recording stops before the disk is full, so that the episode can still be closed."""


class DiskFullError(DataError):
    """No space left; what was written before is whole and the episode can still be finished."""


class EpisodeWriter:
    """Streams one episode to disk; steps are visible to other processes at once and on the disk within a second.

    Not thread-safe. After ``finish``, ``discard`` or ``close`` it cannot be used again.
    """

    def __init__(
        self,
        root: Path,
        metadata: EpisodeMetadata,
        *,
        clock: Callable[[], float] = time.monotonic,
        min_free_bytes: int = MIN_FREE_BYTES,
    ) -> None:
        """Create the next free ``episode_N`` under ``root``.

        clock: monotonic seconds, paces the syncs. Raises DiskFullError or DataError when the folder cannot be used.
        """
        self._clock = clock
        self._min_free_bytes = min_free_bytes
        self._metadata = metadata
        self._n_steps = 0
        self._has_commanded = False
        try:
            root.mkdir(parents=True, exist_ok=True)
            _check_space(root, min_free_bytes)
            self._folder = _next_folder(root)
        except OSError as error:
            raise _cannot_write(root, error) from error
        self.path = self._folder / f"{self._folder.name}.tfrecord"
        self._partial = self.path.with_name(self.path.name + PARTIAL_SUFFIX)
        try:
            self._file = self._partial.open("xb", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX)  # a recovery tells by it that the episode is still being written
            write_metadata(_partial_metadata(self._folder), metadata)
            sync_folder(root)
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise _cannot_write(root, error) from error
        self._end = 0
        self._synced_end = 0
        self._synced_at = clock()

    @property
    def n_steps(self) -> int:
        """Steps written so far."""
        return self._n_steps

    @property
    def partial(self) -> Path:
        """The file while it is being written."""
        return self._partial

    def write(self, step: Step) -> None:
        """Append a step.

        Raises ValueError when it does not fit the metadata or the steps before, DiskFullError when no space is left,
        DataError when the disk fails otherwise. After a DiskFullError the episode can be finished with ``n_steps``
        steps: this one is among them where the disk took it but has too little left for more.
        """
        self._check(step)
        try:
            self._end += write_record(self._file, encode_step(step))
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._end)
            self._file.seek(self._end)
            raise _cannot_write(self._folder, error) from error
        self._n_steps += 1
        self.sync_if_due()

    def sync_if_due(self) -> None:
        """Bring to the disk what was written more than half a second ago; call it also while no step comes."""
        now = self._clock()
        if self._synced_end == self._end or now - self._synced_at < SYNC_INTERVAL_S:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(self._folder, error) from error
        self._synced_at, self._synced_end = now, self._end
        _check_space(self._folder, self._min_free_bytes)

    def finish(
        self,
        success: bool | None = None,
        *,
        end_reason: str = "",
        missed: Mapping[str, int] | None = None,
        dropped: Mapping[str, int] | None = None,
    ) -> Path:
        """Make the episode whole; returns the path of its ``.tfrecord``.

        Raises ValueError for an episode without steps (discard it), DataError when the disk fails; the steps are then
        still in the ``.partial`` file.
        """
        if self._n_steps == 0:
            raise ValueError("an episode without steps cannot be finished, discard it")
        metadata = replace(
            self._metadata,
            n_steps=self._n_steps,
            success=success,
            end_reason=end_reason,
            missed=dict(missed or {}),
            dropped=dict(dropped or {}),
        )
        try:
            os.fsync(self._file.fileno())
            _commit(self._partial, metadata)
            self._file.close()
        except OSError as error:
            raise _cannot_write(self._folder, error, kept=self._partial) from error
        return self.path

    def discard(self) -> None:
        """Remove the episode and its folder; raises DataError when that is not possible."""
        self._file.close()
        try:
            self._partial.unlink()
            _partial_metadata(self._folder).unlink()
            self._folder.rmdir()
        except OSError as error:
            raise DataError(f"cannot remove {self._folder}: {error.strerror}; remove it by hand") from error

    def close(self) -> Path:
        """Stop in the middle: the steps stay in the ``.partial`` file, whose path is returned, for a recovery."""
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        return self._partial

    def _check(self, step: Step) -> None:
        if step.state.size != len(self._metadata.joint_names):
            raise ValueError(f"step has {step.state.size} joints, the episode has {len(self._metadata.joint_names)}")
        if step.images.keys() != self._metadata.cameras.keys():
            raise ValueError(f"step has cameras {sorted(step.images)}, the episode {sorted(self._metadata.cameras)}")
        if step.instruction != self._metadata.instruction:
            raise ValueError(f"step says '{step.instruction}', the episode '{self._metadata.instruction}'")
        if self._n_steps == 0:
            self._has_commanded = step.commanded is not None
        elif self._has_commanded != (step.commanded is not None):
            raise ValueError("either all steps of an episode have a commanded target or none")


def check_folder(root: Path, min_free_bytes: int = MIN_FREE_BYTES) -> None:
    """Raise DiskFullError or DataError when no episode could be written to ``root``, which is made if missing."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".recorder-{os.getpid()}"
        probe.touch()
        probe.unlink()
        _check_space(root, min_free_bytes)
    except OSError as error:
        raise _cannot_write(root, error) from error


def recover_episode(partial: Path) -> Path:
    """Make a whole episode of the whole records of a ``.partial`` file; returns its path.

    Raises DataError when it is still being recorded, holds no whole record, or has no metadata.
    """
    if not partial.name.endswith(f".tfrecord{PARTIAL_SUFFIX}"):
        raise DataError(f"{partial} is not an interrupted episode, expected *.tfrecord{PARTIAL_SUFFIX}")
    if _whole(partial).exists():
        raise DataError(f"{_whole(partial)} exists beside {partial.name}; move one of them away")
    try:
        file = partial.open("r+b")
    except OSError as error:
        raise DataError(f"cannot recover {partial}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{partial} is still being recorded; stop the recorder first") from error
        n_steps, end = _whole_steps(file)
        if n_steps == 0:
            raise DataError(f"{partial} holds no whole step; remove {partial.parent}")
        metadata = _interrupted_metadata(partial)
        if metadata.n_steps != n_steps:  # equal: only the last rename was missing
            metadata = replace(metadata, n_steps=n_steps, recovered=True, end_reason="interrupted")
        try:
            file.truncate(end)
            os.fsync(file.fileno())
            _commit(partial, metadata)
        except OSError as error:
            raise _cannot_write(partial.parent, error, kept=partial) from error
    return _whole(partial)


def _whole_steps(file: BinaryIO) -> tuple[int, int]:
    """How many steps at the beginning can be read, and where the last of them ends."""
    scan = scan_records(file)
    end = 0
    for index, (offset, length) in enumerate(zip(scan.offsets, scan.lengths, strict=True)):
        file.seek(int(offset))
        payload, checksum = file.read(int(length)), file.read(4)
        if checksum != masked_crc(payload).to_bytes(4, "little"):
            return index, end
        end = int(offset + length) + 4
    return len(scan.offsets), end


def _next_folder(root: Path) -> Path:
    numbers = [int(match[1]) for entry in root.iterdir() if (match := re.fullmatch(r"episode_(\d+)", entry.name))]
    number = max(numbers, default=-1) + 1
    while True:
        folder = root / f"episode_{number}"
        try:
            folder.mkdir()
        except FileExistsError:  # another recorder was faster
            number += 1
        else:
            return folder


def _whole(partial: Path) -> Path:
    return partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX))


def _partial_metadata(folder: Path) -> Path:
    return folder / (METADATA_NAME + PARTIAL_SUFFIX)


def _commit(partial: Path, metadata: EpisodeMetadata) -> None:
    folder = partial.parent
    write_metadata(folder / METADATA_NAME, metadata)
    partial.rename(_whole(partial))
    _partial_metadata(folder).unlink(missing_ok=True)
    sync_folder(folder)


def _interrupted_metadata(partial: Path) -> EpisodeMetadata:
    for path in (partial.parent / METADATA_NAME, _partial_metadata(partial.parent)):
        metadata = read_metadata(path)
        if metadata is not None:
            return metadata
    raise DataError(f"{partial} has no {METADATA_NAME}{PARTIAL_SUFFIX} beside it, so robot and rate are not known")


def _check_space(folder: Path, min_free_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < min_free_bytes:
        raise DiskFullError(
            f"no space on the disk of {folder}: {free / 1e6:.0f} MB free, at least {min_free_bytes / 1e6:.0f} MB "
            "wanted. Free some or record elsewhere with the parameter output_dir"
        )


def _cannot_write(folder: Path, error: OSError, *, kept: Path | None = None) -> DataError:
    recover = "" if kept is None else f". Its steps are kept: python -m crane_x7_log.episodes recover {kept}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"no space on the disk of {folder}. Free some or record elsewhere with the parameter output_dir{recover}"
        )
    return DataError(
        f"cannot write to {folder}: {error.strerror}. "
        f"Give another folder with the parameter output_dir, or write access to this one{recover}"
    )
