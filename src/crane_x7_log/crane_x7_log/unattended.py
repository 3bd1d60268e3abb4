"""Recording with nobody at the keyboard: so many episodes of so many seconds, one after the other.

Under ``docker compose`` there is no terminal to press start and stop at, so the recorder does it itself: it waits until
every source is there, has the scene reset where a service does that (the simulator's), records, and saves. On a table
where a person puts things back it pauses between episodes instead.

A simulator in lockstep runs on as soon as it is reset, so there the recorder is started first, when a scene is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from crane_x7_log.recorder import STOPPED
from crane_x7_log.status import State, Status
from crane_x7_vla.errors import ConfigError, DataError

_FAULTS_IN_A_ROW = 3


class Wish(Enum):
    """What the recorder's operator would do now."""

    RESET = "reset the scene"
    START = "start"
    STOP = "stop"
    DISCARD = "discard"
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
    STARTED = "started, the reset is next"
    RESET = "reset, the start is next"
    RECORD = "record"
    SAVE = "save"


class Unattended:
    """Asked several times a second by ``next``, told by ``on_reset`` and ``on_task_end`` what happened."""

    def __init__(self, config: UnattendedConfig) -> None:
        self._config = config
        self._phase = _Phase.PAUSE
        self._pause_ends: float | None = None
        self._recording_since: float | None = None
        self._saved = 0
        self._faults = 0
        self._task_ended = False
        self._blind = False

    @property
    def saved(self) -> int:
        """Episodes of full worth so far."""
        return self._saved

    def seconds_to_start(self, now: float) -> float:
        """How long the present pause still lasts."""
        return 0.0 if self._pause_ends is None else max(0.0, self._pause_ends - now)

    def next(self, status: Status, now: float, *, resettable: bool) -> Wish | None:
        """What to do now, or None. resettable: a service resets the scene, so that nobody needs a pause for it.

        Raises DataError when several episodes in a row could not be recorded.
        """
        idle = status.state == State.IDLE.value
        if self._phase is _Phase.PAUSE and idle:
            # In lockstep a scene that is over shows nothing to a recorder that comes later. It lets one more pass, so
            # that everything is connected when the first that counts begins.
            self._blind = bool(status.waiting_for)
            if self._blind and not (self._config.lockstep and self._task_ended):
                return None
            return self._between(now, resettable=resettable)
        if self._phase is _Phase.STARTED:
            self._phase = _Phase.RECORD
            return Wish.RESET
        if self._phase is _Phase.RECORD:
            return self._while_recording(status, now)
        if self._phase is _Phase.SAVE and idle:
            self._judge(status, now)
        return None

    def on_reset(self) -> Wish | None:
        """The scene is reset, and what came since shows it."""
        if self._phase is not _Phase.RESET:
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
                return None
            self._phase = _Phase.STARTED
        elif resettable:
            self._phase = _Phase.RESET
        elif self.seconds_to_start(now) > 0:
            return None
        else:
            self._phase = _Phase.RECORD
        self._task_ended = False
        self._recording_since = None
        return Wish.RESET if self._phase is _Phase.RESET else Wish.START

    def _while_recording(self, status: Status, now: float) -> Wish | None:
        if status.state not in (State.WAITING.value, State.RECORDING.value):  # a fault ended it
            self._phase = _Phase.SAVE
        elif self._blind:
            if self._task_ended:
                self._phase = _Phase.SAVE
                return Wish.DISCARD
        elif status.state == State.RECORDING.value:
            self._recording_since = now if self._recording_since is None else self._recording_since
            if self._task_ended or now - self._recording_since >= self._config.episode_s:
                self._phase = _Phase.SAVE
                return Wish.STOP
        return None

    def _judge(self, status: Status, now: float) -> None:
        self._phase = _Phase.PAUSE
        self._pause_ends = now + self._config.pause_s
        if self._blind:
            return
        last = status.last
        if last is not None and last.outcome == "saved" and last.reason == STOPPED:
            self._saved += 1
            self._faults = 0
            return
        self._faults += 1
        if self._faults >= _FAULTS_IN_A_ROW:
            raise DataError(
                f"{self._faults} episodes in a row were not recorded to their end; the last one: "
                f"{'nothing was recorded' if last is None else last.reason}"
            )
