"""The sampler for a simulator that advances one control period at a time, when its commands have come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crane_x7_log.sampling import (
    BACKWARDS_NS,
    COMMANDS,
    STATE,
    Sample,
    Stamped,
    Transition,
    backwards,
)
from crane_x7_vla.protocol import NANOSECONDS

# Instants kept while one of them is not complete; the publishers' queues are as deep.
_DEPTH = 20
# Complete instants after which an incomplete one before the first step is given up.
_PATIENCE = 5


@dataclass(slots=True)
class _Instant:
    state: NDArray[np.float32] | None
    images: dict[str, bytes]
    commands: set[str]


class LockstepSampler:
    """Samples at the simulator's instants: every source and both commands with exactly the same stamp.

    A transition comes as soon as its sample is complete and the state one period later is there. Instants before the
    first complete one are left out; a jump in time or an instant that stays incomplete afterwards is a fault.
    """

    def __init__(self, cameras: Sequence[str], *, labels: Mapping[str, str], period_ns: int) -> None:
        self._labels = labels
        self._cameras = tuple(cameras)
        self._period_ns = period_ns
        self._instants: dict[int, _Instant] = {}
        self._last_ns: int | None = None
        self._newest_ns = 0
        self._missed = dict.fromkeys([STATE, *cameras, *COMMANDS], 0)
        self.fault: str | None = None

    @property
    def missed(self) -> Mapping[str, int]:
        return self._missed

    def add_state(self, stamp_ns: int, state: NDArray[np.float32]) -> bool:
        instant = self._instant(STATE, stamp_ns)
        if instant is not None and instant.state is None:
            instant.state = state
        return instant is not None or stamp_ns == self._last_ns

    def add_image(self, camera: str, stamp_ns: int, jpeg: bytes) -> bool:
        instant = self._instant(camera, stamp_ns)
        if instant is not None:
            instant.images.setdefault(camera, jpeg)
        return instant is not None or stamp_ns == self._last_ns

    def add_command(self, part: str, stamp_ns: int) -> None:
        instant = self._instant(part, stamp_ns)
        if instant is not None:
            instant.commands.add(part)

    def poll(self) -> list[Transition]:
        return self._advance(before=_PATIENCE, after=_DEPTH)

    def flush(self) -> list[Transition]:
        return self._advance(before=1, after=1)

    def waiting_for(self) -> list[str]:
        if not self._instants:
            return [STATE, *self._cameras, *COMMANDS]
        return self._missing(self._instants[min(self._instants)]) or [STATE]

    def hint(self) -> str:
        return ""

    def _instant(self, source: str, stamp_ns: int) -> _Instant | None:
        if stamp_ns < self._newest_ns - max(BACKWARDS_NS, _DEPTH * self._period_ns):
            self.fault = self.fault or backwards(self._labels[source], self._newest_ns, stamp_ns)
        if self._last_ns is not None and stamp_ns <= self._last_ns:
            return None
        self._newest_ns = max(self._newest_ns, stamp_ns)
        return self._instants.setdefault(stamp_ns, _Instant(None, {}, set()))

    def _missing(self, instant: _Instant) -> list[str]:
        return (
            ([STATE] if instant.state is None else [])
            + [camera for camera in self._cameras if camera not in instant.images]
            + [part for part in COMMANDS if part not in instant.commands]
        )

    def _advance(self, *, before: int, after: int) -> list[Transition]:
        """before, after: later instants for which an incomplete one is waited for, before and after the first step."""
        done: list[Transition] = []
        while self._instants and self.fault is None:
            transition = self._first()
            if transition is not None:
                done.append(transition)
                self._leave(transition.sample.stamp_ns)
            elif self._last_ns is not None:
                self._find_fault(after)
                break
            elif not self._skip(before):
                break
        return done

    def _first(self) -> Transition | None:
        """The transition of the earliest instant, if it is complete and its successor is there."""
        stamp_ns = min(self._instants)
        instant = self._instants[stamp_ns]
        following = self._following(stamp_ns)
        if instant.state is None or self._missing(instant) or following is None:
            return None
        next_ns, next_state = following
        if not self._is_period(next_ns - stamp_ns):
            return None
        images = {camera: Stamped(stamp_ns, image) for camera, image in instant.images.items()}
        return Transition(Sample(stamp_ns, Stamped(stamp_ns, instant.state), images), next_ns, next_state)

    def _skip(self, patience: int) -> bool:
        """Leave out the earliest instant, before the first step, where no step can come of it."""
        stamp_ns = min(self._instants)
        later = [instant for stamp, instant in self._instants.items() if stamp > stamp_ns]
        jump = self._jump(stamp_ns)
        if jump is None:
            if sum(not self._missing(instant) for instant in later) < patience and len(later) < _DEPTH:
                return False
            for source in self._missing(self._instants[stamp_ns]):
                self._missed[source] += 1
        del self._instants[stamp_ns]
        return True

    def _find_fault(self, patience: int) -> None:
        stamp_ns = min(self._instants)
        missing = self._missing(self._instants[stamp_ns])
        jump = self._jump(stamp_ns)
        if jump is not None:
            self.fault = (
                f"time went from {stamp_ns / NANOSECONDS:.3f} s to {jump / NANOSECONDS:.3f} s in one step of "
                f"{self._period_ns / NANOSECONDS:g} s: the simulator was reset, or runs at another rate"
            )
        elif missing and len(self._instants) > patience:
            for source in missing:
                self._missed[source] += 1
            names = " and ".join(self._labels[source] for source in missing)
            self.fault = f"{names} of the instant {stamp_ns / NANOSECONDS:.3f} s never came"

    def _jump(self, stamp_ns: int) -> int | None:
        """Where time jumps to after ``stamp_ns``, None where it does not."""
        following = self._following(stamp_ns)
        return None if following is None or self._is_period(following[0] - stamp_ns) else following[0]

    def _leave(self, stamp_ns: int) -> None:
        self._last_ns = stamp_ns
        for old in [stamp for stamp in self._instants if stamp <= stamp_ns]:
            del self._instants[old]

    def _following(self, stamp_ns: int) -> tuple[int, NDArray[np.float32]] | None:
        later = [
            (stamp, instant.state)
            for stamp, instant in self._instants.items()
            if stamp > stamp_ns and instant.state is not None
        ]
        return min(later, key=lambda item: item[0], default=None)

    def _is_period(self, duration_ns: int) -> bool:
        return abs(duration_ns - self._period_ns) * 100 <= self._period_ns
