"""What the recorder says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class State(Enum):
    IDLE = "idle"
    WAITING = "waiting"
    RECORDING = "recording"
    SAVING = "saving"
    DISCARDING = "discarding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What became of the last episode. path: of the episode or of its .partial file, empty when nothing was kept.

    outcome: saved, discarded, left (kept as .partial) or nothing (no step was recorded). reason: why it ended.
    """

    outcome: str
    path: str
    steps: int
    success: bool | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the recorder does now. missed and dropped are of the present episode, or of the last one when idle.

    saved: whole episodes since the recorder was started. waiting_for: what it lacks, in words.
    """

    state: str
    steps: int
    episode: str
    instruction: str
    missed: Mapping[str, int]
    dropped: Mapping[str, int]
    waiting_for: tuple[str, ...]
    saved: int
    last: Finished | None
