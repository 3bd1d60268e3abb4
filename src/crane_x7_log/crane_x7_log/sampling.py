"""From streams of stamped messages to the steps of an episode, by header stamp only; no clock is read here.

``GridSampler`` pairs the messages nearest to the points of a fixed-rate grid, for real time. The ``LockstepSampler`` of
``lockstep`` takes only messages of exactly one stamp, for a simulator that waits for its commands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from crane_x7_vla.protocol import NANOSECONDS

STATE = "joint_states"
ARM_COMMAND = "arm_command"
GRIPPER_COMMAND = "gripper_command"
COMMANDS = (ARM_COMMAND, GRIPPER_COMMAND)

# A stamp this far behind the one before is not a late message but a clock that was set back.
BACKWARDS_NS = NANOSECONDS // 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stamped(Generic[T]):
    """A value and its header stamp, ns."""

    stamp_ns: int
    value: T


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one instant. state: float32 [S] rad; images: JPEG by camera."""

    stamp_ns: int
    state: Stamped[NDArray[np.float32]]
    images: Mapping[str, Stamped[bytes]]


@dataclass(frozen=True, slots=True)
class Transition:
    """A sample and the state float32 [S] rad at the next instant."""

    sample: Sample
    next_stamp_ns: int
    next_state: NDArray[np.float32]


class Sampler(Protocol):
    """What the recorder feeds. fault: why no further transition will come, None while all is well."""

    fault: str | None

    @property
    def missed(self) -> Mapping[str, int]:
        """Per source, samples paired with a message further away than the tolerance."""
        ...

    def add_state(self, stamp_ns: int, state: NDArray[np.float32]) -> bool:
        """Joint positions float32 [S] rad; False when the message is of no use, because its stamp is not a later one.

        In lockstep a repetition of the present instant is harmless and True.
        """
        ...

    def add_image(self, camera: str, stamp_ns: int, jpeg: bytes) -> bool:
        """An image; False as for ``add_state``."""
        ...

    def add_command(self, part: str, stamp_ns: int) -> None:
        """That ARM_COMMAND or GRIPPER_COMMAND came for the instant ``stamp_ns``."""
        ...

    def poll(self) -> list[Transition]:
        """Transitions that have become certain since the last call."""
        ...

    def flush(self) -> list[Transition]:
        """The rest, when nothing more will be added."""
        ...

    def waiting_for(self) -> list[str]:
        """Sources without which the next transition cannot come."""
        ...

    def hint(self) -> str:
        """Why that may be, empty when nothing is known."""
        ...


class GridSampler:
    """Samples at t0 + k * period, each source by its message nearest to the grid point.

    t0 is the first instant that every source has reached. A message further than ``tolerance_ns`` from its grid point
    is still used, and counted as missed; a source without a message within its ``max_age_ns`` of a grid point, or that
    far behind the newest source, is stale, which is a fault. A transition comes one period late, so that what was
    commanded until its end is known.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        *,
        labels: Mapping[str, str],
        period_ns: int,
        tolerance_ns: int,
        max_age_ns: Mapping[str, int],
    ) -> None:
        """labels: what messages call each source. max_age_ns: by source."""
        self._labels = labels
        self._period_ns = period_ns
        self._tolerance_ns = tolerance_ns
        self._max_age_ns = max_age_ns
        self._states: deque[Stamped[NDArray[np.float32]]] = deque()
        self._images: dict[str, deque[Stamped[bytes]]] = {camera: deque() for camera in cameras}
        self._start_ns: int | None = None
        self._taken = 0
        self._pending: deque[Sample] = deque()
        self._behind_ns: dict[str, int] = {}
        self._missed = dict.fromkeys([STATE, *cameras], 0)
        self.fault: str | None = None

    @property
    def missed(self) -> Mapping[str, int]:
        return self._missed

    def add_state(self, stamp_ns: int, state: NDArray[np.float32]) -> bool:
        return self._add(STATE, self._states, Stamped(stamp_ns, state))

    def add_image(self, camera: str, stamp_ns: int, jpeg: bytes) -> bool:
        return self._add(camera, self._images[camera], Stamped(stamp_ns, jpeg))

    def add_command(self, part: str, stamp_ns: int) -> None:
        """Nothing: in real time commands come when they come."""

    def poll(self) -> list[Transition]:
        if self.fault is None:
            if self._start_ns is None:
                self._find_start()
            while self._start_ns is not None and self.fault is None and self._reached(self._next_ns()):
                self._take(self._next_ns())
            if self._start_ns is not None and self.fault is None:
                self._find_stale()
        return self._transitions(keep=2)

    def flush(self) -> list[Transition]:
        return self.poll() + self._transitions(keep=1)

    def waiting_for(self) -> list[str]:
        target = self._newest_ns() if self._start_ns is None else self._next_ns()
        return [
            source
            for source, buffer in self._buffers().items()
            if not buffer or (self._start_ns is not None and buffer[-1].stamp_ns < target)
        ]

    def hint(self) -> str:
        if self._start_ns is not None or not self._behind_ns:
            return ""
        source, behind_ns = max(self._behind_ns.items(), key=lambda item: item[1])
        return (
            f"stamps of {self._labels[source]} are {behind_ns / NANOSECONDS:.1f} s older than those of other sources: "
            "use one clock for all (use_sim_time, NTP)"
        )

    def _buffers(self) -> dict[str, Sequence[Stamped[NDArray[np.float32]]] | Sequence[Stamped[bytes]]]:
        return {STATE: self._states, **self._images}

    def _add(self, source: str, buffer: deque[Stamped[T]], item: Stamped[T]) -> bool:
        if self.fault is not None:
            return False
        if buffer and item.stamp_ns <= buffer[-1].stamp_ns:
            if item.stamp_ns < buffer[-1].stamp_ns - BACKWARDS_NS:
                self.fault = backwards(self._labels[source], buffer[-1].stamp_ns, item.stamp_ns)
            return False
        gap_ns = item.stamp_ns - buffer[-1].stamp_ns if buffer else 0
        if self._start_ns is not None and gap_ns > 2 * self._max_age_ns[source]:
            self.fault = (
                f"{self._labels[source]} went from {buffer[-1].stamp_ns / NANOSECONDS:.3f} s to "
                f"{item.stamp_ns / NANOSECONDS:.3f} s: the simulator was reset, or messages were lost"
            )
            return False
        buffer.append(item)
        return True

    def _newest_ns(self) -> int:
        return max((buffer[-1].stamp_ns for buffer in self._buffers().values() if buffer), default=0)

    def _next_ns(self) -> int:
        assert self._start_ns is not None
        return self._start_ns + self._taken * self._period_ns

    def _reached(self, stamp_ns: int) -> bool:
        return all(buffer and buffer[-1].stamp_ns >= stamp_ns for buffer in self._buffers().values())

    def _find_start(self) -> None:
        newest_ns = self._newest_ns()
        oldest_ns = newest_ns - max(self._max_age_ns.values())
        for source, buffer in (*self._images.items(), (STATE, self._states)):
            last_ns = buffer[-1].stamp_ns if buffer else newest_ns
            if last_ns < oldest_ns:
                self._behind_ns[source] = newest_ns - last_ns
            while buffer and buffer[0].stamp_ns < oldest_ns:
                buffer.popleft()
        if self._states and all(self._images.values()):
            start_ns = max(buffer[0].stamp_ns for buffer in self._buffers().values())
            if self._reached(start_ns):
                self._start_ns = start_ns

    def _take(self, stamp_ns: int) -> None:
        state = self._nearest(STATE, self._states, stamp_ns)
        images = {camera: self._nearest(camera, buffer, stamp_ns) for camera, buffer in self._images.items()}
        found = {camera: image for camera, image in images.items() if image is not None}
        if state is not None and len(found) == len(images):
            self._pending.append(Sample(stamp_ns, state, found))
            self._taken += 1

    def _nearest(self, source: str, buffer: deque[Stamped[T]], stamp_ns: int) -> Stamped[T] | None:
        while len(buffer) > 1 and abs(buffer[1].stamp_ns - stamp_ns) <= abs(buffer[0].stamp_ns - stamp_ns):
            buffer.popleft()
        distance = abs(buffer[0].stamp_ns - stamp_ns)
        if distance > self._max_age_ns[source]:
            self.fault = (
                f"{self._labels[source]} has nothing within {self._max_age_ns[source] / NANOSECONDS:g} s of "
                f"{stamp_ns / NANOSECONDS:.3f} s, the nearest is {distance / NANOSECONDS:.3f} s away"
            )
            return None
        if distance > self._tolerance_ns:
            self._missed[source] += 1
        return buffer[0]

    def _find_stale(self) -> None:
        newest_ns = self._newest_ns()
        for source, buffer in self._buffers().items():
            behind = newest_ns - buffer[-1].stamp_ns
            if behind > self._max_age_ns[source]:
                self.fault = (
                    f"{self._labels[source]} is stale: its last message is {behind / NANOSECONDS:.3f} s older than the "
                    f"newest of the others, at most {self._max_age_ns[source] / NANOSECONDS:g} s are allowed"
                )
                return

    def _transitions(self, *, keep: int) -> list[Transition]:
        done: list[Transition] = []
        while len(self._pending) > keep:
            sample = self._pending.popleft()
            done.append(Transition(sample, self._pending[0].stamp_ns, self._pending[0].state.value))
        return done


def backwards(label: str, before_ns: int, after_ns: int) -> str:
    """The sentence for a clock that was set back."""
    return (
        f"the clock of {label} went backwards from {before_ns / NANOSECONDS:.3f} s to {after_ns / NANOSECONDS:.3f} s: "
        "the simulator or the driver was started again"
    )
