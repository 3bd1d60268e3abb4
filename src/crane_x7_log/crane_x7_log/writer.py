"""The thread that writes episodes, so that no callback ever waits for the disk."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from crane_x7_vla.data.episode import EpisodeMetadata, EpisodeWriter, Step, check_folder
from crane_x7_vla.errors import DataError

logger = logging.getLogger(__name__)

# How long the thread waits for work before it looks whether something has to be synced, s.
_IDLE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an episode ended; goes into its metadata."""

    success: bool | None
    reason: str
    missed: Mapping[str, int]
    dropped: Mapping[str, int]


class Outcome(Enum):
    """SAVED and DISCARDED are done. BROKEN: nothing more can be written, finish it. LEFT: the steps stay .partial."""

    SAVED = "saved"
    DISCARDED = "discarded"
    BROKEN = "broken"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Report:
    """What became of an episode. text: what went wrong, empty when nothing did."""

    outcome: Outcome
    path: Path
    n_steps: int
    text: str = ""


class EpisodeThread:
    """Writes one episode after the other. All methods are called from one thread, the work is done in another."""

    def __init__(
        self, root: Path, *, min_free_bytes: int, queue_steps: int = 256, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """queue_steps: steps that may wait for the disk before recording stops, which bounds the memory."""
        self._root = root
        self._min_free_bytes = min_free_bytes
        self._queue_steps = queue_steps
        self._clock = clock
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        # Each counted up by one thread only.
        self._handed = 0
        self._taken = 0
        self._writer: EpisodeWriter | None = None
        self._broken = ""
        self._thread = threading.Thread(target=self._run, name="episode writer", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Steps that wait for the disk."""
        return self._handed - self._taken

    def check(self) -> None:
        """Raise DataError when an episode could not be written now."""
        check_folder(self._root, self._min_free_bytes)

    def open(self, metadata: EpisodeMetadata) -> Path:
        """Begin an episode; returns the path it will have. Raises DataError when the folder cannot be used."""
        writer = EpisodeWriter(self._root, metadata, clock=self._clock, min_free_bytes=self._min_free_bytes)
        self._work.put(lambda: self._begin(writer))
        return writer.path

    def write(self, step: Step) -> None:
        """Hand over a step; raises DataError when too many are waiting for the disk."""
        if self.backlog >= self._queue_steps:
            raise DataError(
                f"the disk of {self._root} is too slow, {self._queue_steps} steps wait for it; record to a faster one"
            )
        self._handed += 1
        self._work.put(lambda: self._step(step))

    def finish(self, ending: Ending) -> None:
        """Make the episode whole; a report follows."""
        self._work.put(lambda: self._finish(ending))

    def discard(self) -> None:
        """Remove the episode; a report follows."""
        self._work.put(self._discard)

    def leave(self) -> None:
        """Keep the steps as .partial; a report follows."""
        self._work.put(self._leave)

    def reports(self) -> list[Report]:
        """What became of episodes since the last call."""
        found: list[Report] = []
        while not self._reports.empty():
            found.append(self._reports.get())
        return found

    def close(self, timeout_s: float) -> bool:
        """Do all that was handed over and end the thread; False when that takes longer than ``timeout_s``."""
        self._work.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=_IDLE_S)
            except queue.Empty:
                work = self._sync
            if work is None:
                return
            try:
                work()
            except DataError as error:
                self._break(str(error))
            except Exception as error:
                logger.exception("the writer of episodes failed")
                self._break(f"the writer failed: {error!r}")

    def _break(self, text: str) -> None:
        if self._writer is not None and not self._broken:
            self._broken = text
            self._reports.put(Report(Outcome.BROKEN, self._writer.path, self._writer.n_steps, text))

    def _begin(self, writer: EpisodeWriter) -> None:
        self._writer, self._broken = writer, ""

    def _step(self, step: Step) -> None:
        self._taken += 1
        if self._writer is not None and not self._broken:
            self._writer.write(step)

    def _sync(self) -> None:
        if self._writer is not None and not self._broken:
            self._writer.sync_if_due()

    def _finish(self, ending: Ending) -> None:
        def act(writer: EpisodeWriter) -> Report:
            if writer.n_steps == 0:
                writer.discard()
                return Report(Outcome.DISCARDED, writer.path, 0, self._broken)
            reason = self._broken or ending.reason
            writer.finish(ending.success, end_reason=reason, missed=ending.missed, dropped=ending.dropped)
            return Report(Outcome.SAVED, writer.path, writer.n_steps, self._broken)

        self._end(act)

    def _discard(self) -> None:
        def act(writer: EpisodeWriter) -> Report:
            try:
                writer.discard()
            except DataError as error:
                return Report(Outcome.DISCARDED, writer.path, writer.n_steps, str(error))
            return Report(Outcome.DISCARDED, writer.path, writer.n_steps)

        self._end(act)

    def _leave(self) -> None:
        self._end(lambda writer: Report(Outcome.LEFT, writer.close(), writer.n_steps, self._broken))

    def _end(self, act: Callable[[EpisodeWriter], Report]) -> None:
        """Whatever happens, a report says what became of the episode."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            report = act(writer)
        except (DataError, OSError) as error:
            report = Report(Outcome.LEFT, writer.partial, writer.n_steps, str(error))
        except Exception as error:
            logger.exception("the writer of episodes failed")
            report = Report(Outcome.LEFT, writer.partial, writer.n_steps, f"the writer failed: {error!r}")
        self._reports.put(report)
