"""Messages as they come in, and the observation of an instant made from them.

Adding is cheap and belongs into callbacks; converting happens in ``observe``, for the few messages that are used.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from sensor_msgs.msg import Image, JointState

from crane_x7_vla.errors import DataError
from crane_x7_vla.nodes.messages import image_to_rgb, joint_state_positions, stamp_ns
from crane_x7_vla.protocol import JOINT_STATES, NANOSECONDS
from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.safety import stale
from crane_x7_vla.types import Observation

# Kept beyond what history needs, s: sources differ in delay.
_KEPT_S = 0.5


class ObservationBuffer:
    """The last messages of the joint states and of each camera, by header stamp. Threads may share it."""

    def __init__(self, robot: RobotSpec, cameras: Sequence[str], *, dt: float, history: int = 0) -> None:
        """dt: control period, s. history: entries of ``Observation.past`` to provide, one ``dt`` apart."""
        self._robot = robot
        self._cameras = tuple(cameras)
        self._history = history
        self._dt_ns = round(dt * NANOSECONDS)
        self._keep_ns = self._dt_ns * history + round(_KEPT_S * NANOSECONDS)
        self._lock = threading.Lock()
        self._messages: dict[str, deque[tuple[int, Image | JointState]]] = {
            source: deque() for source in (JOINT_STATES, *self._cameras)
        }

    def add(self, source: str, message: Image | JointState) -> int:
        """Keep ``message`` of ``source``, a camera's name or JOINT_STATES; returns its stamp in ns."""
        stamp = stamp_ns(message.header)
        with self._lock:
            kept = self._messages[source]
            if kept and stamp < kept[-1][0]:
                # Time ran backwards: the source was started anew.
                kept.clear()
            elif kept and stamp == kept[-1][0]:
                kept.pop()
            kept.append((stamp, message))
            while kept[0][0] < stamp - self._keep_ns:
                kept.popleft()
        return stamp

    def clear(self) -> None:
        """Forget every message."""
        with self._lock:
            for kept in self._messages.values():
                kept.clear()

    def missing(self, stamp: int) -> list[str]:
        """Sources without a message stamped exactly ``stamp`` ns."""
        with self._lock:
            return [source for source, kept in self._messages.items() if all(stamp != at for at, _ in reversed(kept))]

    def newest(self) -> int | None:
        """The newest instant (ns) that every source has reached, None before every source has been heard."""
        with self._lock:
            stamps = [kept[-1][0] if kept else None for kept in self._messages.values()]
        return None if None in stamps else min(stamp for stamp in stamps if stamp is not None)

    def problem(self, now: int, max_age: float) -> str | None:
        """Which source is missing or stale at ``now`` ns and since when, None when all are fresh."""
        with self._lock:
            last = {source: kept[-1][0] if kept else None for source, kept in self._messages.items()}
        problems = []
        for source, stamp in last.items():
            name = source if source == JOINT_STATES else f"camera {source}"
            if stamp is None:
                problems.append(f"nothing from {name} yet")
                continue
            age = stale(stamp / NANOSECONDS, now / NANOSECONDS, max_age)
            if age is not None:
                problems.append(f"{name} is {age}")
        return "; ".join(problems) or None

    def observe(
        self, stamp: int, *, instruction: str, commanded: np.ndarray | None, tolerance: float = 0.0
    ) -> Observation:
        """The observation of the instant ``stamp`` ns, from the messages nearest to it.

        tolerance: s, how far from it a message may be. Raises DataError naming the source that has nothing there, and
        for messages that cannot be read.
        """
        past = []
        for back in range(1, self._history + 1):
            try:
                earlier = self._pick(stamp - back * self._dt_ns, max(tolerance, self._dt_ns / NANOSECONDS / 2))
            except DataError:
                # The episode is younger than the history.
                break
            past.append(self._convert(earlier, stamp - back * self._dt_ns, instruction, None, ()))
        chosen = self._pick(stamp, tolerance)
        return self._convert(chosen, stamp, instruction, commanded, tuple(past))

    def state(self, stamp: int, tolerance: float = 0.0) -> np.ndarray:
        """float32 [S] rad, the joint state nearest to ``stamp`` ns; raises as ``observe``."""
        return self._state(self._pick(stamp, tolerance, (JOINT_STATES,)))

    def _pick(
        self, stamp: int, tolerance: float, sources: Sequence[str] | None = None
    ) -> Mapping[str, Image | JointState]:
        chosen = {}
        with self._lock:
            for source in sources or self._messages:
                kept = self._messages[source]
                if not kept:
                    raise DataError(f"nothing from {source} yet")
                at, message = min(kept, key=lambda entry: abs(entry[0] - stamp))
                if abs(at - stamp) > tolerance * NANOSECONDS:
                    raise DataError(
                        f"{source} has nothing within {tolerance:g} s of {stamp / NANOSECONDS:.3f} s; its nearest is "
                        f"from {at / NANOSECONDS:.3f} s"
                    )
                chosen[source] = message
        return chosen

    def _state(self, chosen: Mapping[str, Image | JointState]) -> np.ndarray:
        message = chosen[JOINT_STATES]
        assert isinstance(message, JointState)
        return joint_state_positions(message, self._robot)

    def _convert(
        self,
        chosen: Mapping[str, Image | JointState],
        stamp: int,
        instruction: str,
        commanded: np.ndarray | None,
        past: tuple[Observation, ...],
    ) -> Observation:
        images = {}
        for camera in self._cameras:
            message = chosen[camera]
            assert isinstance(message, Image)
            images[camera] = image_to_rgb(message)
        return Observation(
            images=images,
            state=self._state(chosen),
            instruction=instruction,
            stamp=stamp / NANOSECONDS,
            commanded=commanded,
            past=past,
        )
