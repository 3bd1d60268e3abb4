"""Recording with nobody at the keyboard: so many episodes of so many seconds, one after the other.

Under ``docker compose`` there is no terminal to press start and stop at, so the recorder does it itself: it waits until
every source is there, has the scene reset where a service does that (the simulator's), records, and saves. On a table
where a person puts things back it pauses between episodes instead.

A simulator in lockstep runs on as soon as it is reset, so there the recorder is started first, when a scene is over.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum

from crane_x7_log.recorder import DISCARDED, STOPPED
from crane_x7_log.status import State, Status
from crane_x7_vla.errors import ConfigError, DataError
from crane_x7_vla.protocol import EPISODE_END, NEXT_SCENE

logger = logging.getLogger(__name__)

_FAULTS_IN_A_ROW = 3
# Until the graph is known, so that the service of a simulator whose topics came first is not missed, s.
_DISCOVERY_S = 2.0
# In lockstep: how long there may be no simulator, and how long a scene may take, its policy loading first, s.
_SIMULATOR_S = 60.0
_SCENE_S = 600.0


class Wish(Enum):
    """What the recorder's operator would do now."""

    RESET = "reset the scene"
    START = "start"
    STOP = "stop"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnattendedConfig:
    """episodes: to save. episode_s: the longest one. pause_s: between two, for a person to restore the scene.

    lockstep: of a simulator whose scenes end by themselves.
    """

    episodes: int
    episode_s: float
    pause_s: float
    lockstep: bool = False

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"num_episodes is {self.episodes}, expected 1 or more, or 0 to start each by hand")
        if not self.episode_s > 0:
            raise ConfigError(f"episode_seconds is {self.episode_s:g}, expected a positive number")
        if not self.pause_s >= 0:
            raise ConfigError(f"reset_seconds is {self.pause_s:g}, expected 0 or more")


class _Phase(Enum):
    PAUSE = "pause"
    PASS = "a scene passes unrecorded"
    STARTED = "started, the reset is next"
    RESET = "reset, the start is next"
    RECORD = "record"
    SAVE = "save"


class Unattended:
    """Asked several times a second by ``next``, told by ``on_reset`` and ``on_task_end`` what happened.

    waits_for: what of the simulator in lockstep has to come before the next episode.
    """

    def __init__(self, config: UnattendedConfig) -> None:
        self.waits_for: str | None = None
        self._config = config
        self._phase = _Phase.PAUSE
        self._pause_ends: float | None = None
        self._recording_since: float | None = None
        self._saved = 0
        self._faults = 0
        self._task_ended = False
        self._waits_since = 0.0
        self._passed = 0

    @property
    def saved(self) -> int:
        """Episodes of full worth so far."""
        return self._saved

    def seconds_to_start(self, now: float) -> float:
        """How long the present pause still lasts."""
        return 0.0 if self._pause_ends is None else max(0.0, self._pause_ends - now)

    def next(self, status: Status, now: float, *, resettable: bool) -> Wish | None:
        """What to do now, or None. resettable: a service resets the scene, so that nobody needs a pause for it.

        Raises DataError when several episodes in a row could not be recorded, and when a simulator in lockstep does not
        come or does not end its scene.
        """
        idle = status.state == State.IDLE.value
        if self._phase is _Phase.PASS and self._task_ended:
            self._phase = _Phase.PAUSE
            self._check_sources(status)
        if self._phase is _Phase.PAUSE:
            if idle and not status.waiting_for:
                return self._between(now, resettable=resettable)
            self.waits_for = None
            if idle and self._config.lockstep and self._task_ended and resettable:
                # A scene that is over shows nothing to a recorder that comes later. It lets one more pass, so that
                # everything is connected when the first that counts begins.
                self._phase = _Phase.PASS
                self._task_ended = False
                return Wish.RESET
        if self._phase is _Phase.STARTED:
            self._phase = _Phase.RECORD
            return Wish.RESET
        if self._phase is _Phase.RECORD:
            return self._while_recording(status, now)
        if self._phase is _Phase.SAVE and idle:
            self._judge(status, now)
        return None

    def on_reset(self, status: Status) -> Wish | None:
        """The scene is reset, and what came since shows it."""
        if self._phase is not _Phase.RESET:
            return None
        if status.state != State.IDLE.value:
            logger.info("somebody else has started the recorder; the scene is reset again when it is idle")
            self._phase = _Phase.PAUSE
            return None
        self._phase = _Phase.RECORD
        return Wish.START

    def on_task_end(self) -> bool:
        """The simulator says that its episode has ended; whether one was being recorded."""
        self._task_ended = True
        return self._phase is _Phase.RECORD

    def _between(self, now: float, *, resettable: bool) -> Wish | None:
        if self._saved >= self._config.episodes:
            return Wish.END
        if self._config.lockstep:
            if not (resettable and self._task_ended):
                self._wait(now, resettable=resettable)
                return None
            self.waits_for = None
            self._phase = _Phase.STARTED
        elif resettable:
            self._phase = _Phase.RESET
        elif self._pause_ends is None:
            self._pause_ends = now + _DISCOVERY_S
            return None
        elif self.seconds_to_start(now) > 0:
            return None
        else:
            self._phase = _Phase.RECORD
        self._task_ended = False
        self._recording_since = None
        return Wish.RESET if self._phase is _Phase.RESET else Wish.START

    def _check_sources(self, status: Status) -> None:
        """After a scene that passed: what it did not show will not come."""
        self._passed += 1
        if status.waiting_for and self._passed >= _FAULTS_IN_A_ROW:
            raise DataError(f"{self._passed} scenes passed without {'; '.join(status.waiting_for)}")

    def _wait(self, now: float, *, resettable: bool) -> None:
        waits_for = f"the end of the scene on {EPISODE_END}" if resettable else f"the service {NEXT_SCENE}"
        if waits_for != self.waits_for:
            self.waits_for, self._waits_since = waits_for, now
        limit_s = _SCENE_S if resettable else _SIMULATOR_S
        if now - self._waits_since >= limit_s:
            raise DataError(
                f"lockstep: {waits_for} has not come within {limit_s:g} s; start the simulator in lockstep and a node "
                "that drives it, or for a real arm set lockstep:=false (LIFT_LOCKSTEP=false)"
            )

    def _while_recording(self, status: Status, now: float) -> Wish | None:
        if status.state == State.RECORDING.value:
            self._recording_since = now if self._recording_since is None else self._recording_since
            if self._task_ended or now - self._recording_since >= self._config.episode_s:
                self._phase = _Phase.SAVE
                return Wish.STOP
        elif status.state != State.WAITING.value:  # a fault ended it
            self._phase = _Phase.SAVE
        return None

    def _judge(self, status: Status, now: float) -> None:
        self._phase = _Phase.PAUSE
        self._pause_ends = now + self._config.pause_s
        last = status.last
        if last is not None and last.outcome == "saved" and last.reason == STOPPED:
            self._saved += 1
            self._faults = 0
            return
        if last is not None and last.reason == DISCARDED:
            return
        self._faults += 1
        if self._faults >= _FAULTS_IN_A_ROW:
            raise DataError(
                f"{self._faults} episodes in a row were not recorded to their end; the last one: "
                f"{'nothing was recorded' if last is None else last.reason}"
            )
