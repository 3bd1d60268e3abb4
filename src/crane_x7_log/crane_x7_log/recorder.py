"""The recorder without ROS: a state machine that makes episodes of stamped messages.

    idle ── start ──▶ waiting ── first step ──▶ recording ── stop, fault, time-out ──▶ saving ──▶ idle
                                                    └─────────── discard ──▶ discarding ──▶ idle

Every call says when it is by ``now``, monotonic seconds; stamps are header stamps, ns. Nothing here waits: an
``EpisodeThread`` does the writing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crane_x7_log.commands import CommandTracker
from crane_x7_log.config import RecorderConfig
from crane_x7_log.sampling import ARM_COMMAND, BACKWARDS_NS, COMMANDS, STATE, Stamped
from crane_x7_log.session import Session
from crane_x7_log.sources import Sources
from crane_x7_log.status import Finished, State, Status
from crane_x7_log.writer import Ending, EpisodeThread, Outcome, Report
from crane_x7_vla.data.episode import Step, set_success
from crane_x7_vla.errors import DataError
from crane_x7_vla.protocol import NANOSECONDS

logger = logging.getLogger(__name__)

STOPPED = "stopped by the operator"
DISCARDED = "discarded by the operator"
_RECOVER = "python -m crane_x7_log.episodes recover"
# In lockstep, messages of the last instants may still be on their way when the operator says stop, s.
_SETTLE_QUIET_S = 0.1
_SETTLE_LIMIT_S = 2.0
# Sources send several times a second, s.
_SILENCE_S = 2.0


class RefusedError(ValueError):
    """A request that cannot be fulfilled now; the text says why and what to do."""


@dataclass(slots=True)
class _Current:
    """The present episode. path: None until its first step. reason: why it ended, empty while it goes on."""

    session: Session
    progress_at: float
    path: Path | None = None
    steps: int = 0
    success: bool | None = None
    stop_asked_at: float | None = None
    reason: str = ""


@dataclass(slots=True)
class _Latest:
    """The newest message of each source, so that an episode can begin with what came before its start."""

    state: Stamped[NDArray[np.float32]] | None
    images: dict[str, Stamped[NDArray[np.uint8]]]
    commands_ns: dict[str, int]
    arrived: dict[str, float]


class Recorder:
    """Fed with messages by ``on_*``, with time by ``tick``, and with the operator's wishes by the other methods."""

    def __init__(
        self, config: RecorderConfig, writer: EpisodeThread, *, count_publishers: Callable[[str], int] | None = None
    ) -> None:
        """count_publishers: of a source's topic; tells what is missing, and that two arms are on one topic."""
        self._config = config
        self._writer = writer
        self._sources = Sources(config.topics, count_publishers)
        self._tracker = CommandTracker(config.robot)
        self._latest = _Latest(None, {}, {}, {})
        self._state = State.IDLE
        self._current: _Current | None = None
        self._saved = 0
        self._last: Finished | None = None
        self._last_counts: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})

    # --- the operator's wishes ---

    def start(
        self, instruction: str, now: float, *, started_at: str, seed: int | None = None, afresh: bool = False
    ) -> str:
        """Begin an episode with the first instant that all sources have; returns a sentence for the operator.

        instruction, seed: of this episode, whatever they become later. started_at: ISO 8601. afresh: what came before
        is not of this episode, as the scene will be reset.
        Raises RefusedError, or DataError when nothing could be written.
        """
        if self._state is not State.IDLE:
            raise RefusedError(f"the recorder is {self._state.value}; wait until its status is idle")
        if not instruction.strip():
            raise RefusedError("the parameter instruction is empty; set it to what the arm is to do, in words")
        two_arms = self._sources.two_arms()
        if two_arms:
            raise RefusedError(two_arms)
        self._writer.check()
        self._sources.problems.clear()
        session = Session(
            self._config,
            labels=self._sources.labels,
            tracker=self._tracker,
            instruction=instruction,
            seed=seed,
            started_at=started_at,
        )
        self._current = _Current(session, now)
        self._state = State.WAITING
        if not afresh:
            self._feed_latest(session, now)
            self._advance(now)
        lacking = "; ".join(self._sources.describe_all(self._lacking()))
        return f"recording as soon as these come: {lacking}" if lacking else "recording"

    def stop(self, now: float) -> str:
        """End the episode and save it; returns a sentence. Raises RefusedError when nothing is being recorded."""
        current = self._active("stop")
        if self._config.lockstep:
            current.stop_asked_at = now
            return "saving when the last messages have come" if current.path is None else f"saving {current.path}"
        self._end(STOPPED, now)
        return "nothing was recorded" if current.path is None else f"saving {current.path}"

    def discard(self) -> str:
        """End the episode and remove it; returns a sentence. Raises RefusedError when nothing is being recorded."""
        current = self._active("discard")
        current.reason = DISCARDED
        if current.path is None:
            self._close(current, "nothing", "", 0)
            return "nothing was recorded"
        self._state = State.DISCARDING
        self._writer.discard()
        return f"discarding {current.path}"

    def mark_success(self, success: bool) -> str:
        """Say whether the task was done, of the present episode, or of the last one when idle; returns a sentence.

        Raises RefusedError when there is none, DataError when it cannot be written.
        """
        word = "success" if success else "failure"
        if self._current is not None:
            self._active("mark").success = success
            return f"the present episode is a {word}"
        if self._last is None or self._last.outcome != Outcome.SAVED.value:
            raise RefusedError("there is no saved episode to mark; start one first")
        set_success(Path(self._last.path), success)
        self._last = replace(self._last, success=success)
        return f"{self._last.path} is a {word}"

    def status(self) -> Status:
        current = self._current
        missed, dropped = self._last_counts if current is None else (current.session.missed, current.session.dropped)
        return Status(
            state=self._state.value,
            steps=0 if current is None else current.steps,
            episode="" if current is None or current.path is None else str(current.path),
            instruction="" if current is None else current.session.instruction,
            missed=dict(missed),
            dropped=dict(dropped),
            waiting_for=self._sources.describe_all(self._lacking()),
            saved=self._saved,
            last=self._last,
        )

    def has_all_since(self, stamp_ns: int) -> bool:
        """Whether joint states and every camera have reached that instant, as after a reset of the scene."""
        latest = [self._latest.state, *(self._latest.images.get(camera) for camera in self._config.cameras)]
        return all(message is not None and message.stamp_ns >= stamp_ns for message in latest)

    def silent(self, now: float) -> tuple[str, ...]:
        """Sources that came once and do not any more, in words; in lockstep nothing comes while the simulator waits."""
        if self._config.lockstep:
            return ()
        ages = {source: now - at for source, at in self._latest.arrived.items() if source not in COMMANDS}
        return tuple(
            f"nothing from {self._sources.labels[source]} for {age:.0f} s"
            for source, age in ages.items()
            if age > _SILENCE_S
        )

    # --- what comes from the robot ---

    def on_joint_state(self, stamp_ns: int, state: NDArray[np.float32], now: float) -> None:
        """Measured positions float32 [S] rad in the robot's order."""
        before = self._latest.state
        if before is not None and abs(stamp_ns - before.stamp_ns) > BACKWARDS_NS:
            self._tracker.forget_before(stamp_ns)
        self._latest.state = Stamped(stamp_ns, state)
        self._latest.arrived[STATE] = now
        session = self._fed_session()
        if session is not None:
            self._note(STATE, session.add_state(stamp_ns, state))
            self._advance(now)

    def on_image(self, camera: str, stamp_ns: int, rgb: NDArray[np.uint8], now: float) -> None:
        """A picture, uint8 [H, W, 3] RGB; kept by reference."""
        self._latest.images[camera] = Stamped(stamp_ns, rgb)
        self._latest.arrived[camera] = now
        session = self._fed_session()
        if session is not None:
            self._note(camera, session.add_image(camera, stamp_ns, rgb))
            self._advance(now)

    def on_command(
        self, part: str, start_ns: int | None, times_ns: NDArray[np.int64], positions: NDArray[np.float64], now: float
    ) -> None:
        """A trajectory to ARM_COMMAND or GRIPPER_COMMAND: positions [P, J] rad, ``times_ns`` [P] after ``start_ns``.

        start_ns: None for at once, that is ``now`` by the clock of the joint states, whatever this machine's says.
        """
        before = self._fed_session()
        measured = self._latest.state
        if start_ns is None:
            if measured is None:
                self.reject(part, "it has no stamp, and no joint state has said what time it is")
                return
            start_ns = measured.stamp_ns + round((now - self._latest.arrived[STATE]) * NANOSECONDS)
        self._tracker.follow(part, start_ns, times_ns, positions, measured=None if measured is None else measured.value)
        self._latest.commands_ns[part] = start_ns
        self._latest.arrived[part] = now
        session = self._fed_session()
        if session is not None:
            if before is None:  # it waited for this first command
                self._feed_latest(session, now)
            session.add_command(part, start_ns)
            self._advance(now)

    def reject(self, source: str, reason: str) -> None:
        """A message of ``source`` could not be converted."""
        self._note(source, reason)

    def tick(self, now: float) -> None:
        """Call several times a second: notices what does not come, and what the writer has done."""
        for report in self._writer.reports():
            self._on_report(report, now)
        current = self._current
        if current is None or not self._is_active():
            return
        if current.stop_asked_at is not None:
            quiet = now - max(self._latest.arrived.values(), default=now) >= _SETTLE_QUIET_S
            if quiet or now - current.stop_asked_at >= _SETTLE_LIMIT_S:
                self._end(STOPPED, now)
            return
        two_arms = self._sources.two_arms()
        if two_arms:
            self._end(two_arms, now)
        elif now - current.progress_at >= self._config.timeout_s:
            lacking = "; ".join(self._sources.describe_all(self._needed(current.session.waiting_for())))
            hint = current.session.hint()
            reason = f"no step for {self._config.timeout_s:g} s, waiting for {lacking}"
            self._end(f"{reason}; {hint}" if hint else reason, now)

    def shut_down(self, timeout_s: float) -> None:
        """Save what was stopped, keep an episode in the middle as .partial, and end the writer."""
        current = self._current
        if current is not None and self._is_active():
            if current.stop_asked_at is not None:
                self._end(STOPPED, current.stop_asked_at)
            else:
                current.reason = "the recorder was shut down"
                self._writer.leave()
        done = self._writer.close(timeout_s)
        for report in self._writer.reports():
            self._on_report(report, 0.0)
        if not done:
            logger.error("the disk did not take the last steps within %g s; recover them with: %s", timeout_s, _RECOVER)

    # --- inside ---

    def _is_active(self) -> bool:
        return self._state in (State.WAITING, State.RECORDING)

    def _active(self, wish: str) -> _Current:
        if self._current is None or not self._is_active():
            raise RefusedError(f"nothing to {wish}, the recorder is {self._state.value}")
        if self._current.stop_asked_at is not None:
            raise RefusedError("the episode is being saved already; wait until the status is idle")
        return self._current

    def _fed_session(self) -> Session | None:
        """The session that gets messages now, if any."""
        if self._current is None or not self._is_active():
            return None
        if self._config.commanded == "required" and not self._tracker.arm_commanded:
            return None
        return self._current.session

    def _feed_latest(self, session: Session, now: float) -> None:
        """Give it what came before the start: in lockstep the simulator waits and will not send it again."""
        if self._fed_session() is None:
            return
        latest, limit_s = self._latest, self._config.joint_max_age_s

        def is_new(source: str) -> bool:
            return self._config.lockstep or now - latest.arrived[source] <= limit_s

        if latest.state is not None and is_new(STATE):
            session.add_state(latest.state.stamp_ns, latest.state.value)
        for camera, image in latest.images.items():
            if is_new(camera):
                session.add_image(camera, image.stamp_ns, image.value)
        for part, start_ns in latest.commands_ns.items():
            if latest.state is None or start_ns >= latest.state.stamp_ns:
                session.add_command(part, start_ns)

    def _note(self, source: str, problem: str | None) -> None:
        if problem is None:
            return
        self._sources.problems[source] = problem
        if self._current is not None:
            self._current.session.dropped[source] += 1

    def _advance(self, now: float) -> None:
        current = self._current
        if current is None or not self._is_active():
            return
        if self._hand_over(current, current.session.steps(), now) and current.session.fault is not None:
            # After the operator's stop the simulator may be reset at once, which is no fault of this episode.
            self._end(current.session.fault if current.stop_asked_at is None else STOPPED, now)

    def _hand_over(self, current: _Current, steps: list[Step], now: float) -> bool:
        """Give steps to the writer; False when the episode had to be ended."""
        try:
            for step in steps:
                if current.path is None:
                    current.path = self._writer.open(current.session.metadata())
                    self._state = State.RECORDING
                    logger.info("recording %s: %s", current.path, current.session.instruction)
                self._writer.write(step)
                current.steps += 1
                current.progress_at = now
        except DataError as error:
            self._end(str(error), now, last_steps=False)
            return False
        return True

    def _end(self, reason: str, now: float, *, last_steps: bool = True) -> None:
        """End the episode, saving what it has."""
        current = self._current
        assert current is not None
        if last_steps and current.session.fault is None:
            if not self._hand_over(current, current.session.steps(last=True), now):
                return
            reason = current.session.fault or reason
        current.reason = reason
        logger.log(logging.INFO if reason == STOPPED else logging.ERROR, "the episode ends: %s", reason)
        if current.session.lacks_commanded:
            logger.warning(
                "it has no action/commanded, as commands came after its first step; start the commander first"
            )
        if current.path is None:
            self._close(current, "nothing", "", 0)
            return
        self._state = State.SAVING
        session = current.session
        self._writer.finish(
            Ending(success=current.success, reason=reason, missed=dict(session.missed), dropped=dict(session.dropped))
        )

    def _on_report(self, report: Report, now: float) -> None:
        current = self._current
        if current is None:
            return
        if report.outcome is Outcome.BROKEN:
            if self._is_active():
                self._end(report.text, now, last_steps=False)
            else:
                logger.error("the last steps of the episode are lost: %s", report.text)
            return
        current.reason = report.text or current.reason
        if report.outcome is Outcome.SAVED:
            self._saved += 1
            logger.info("saved %d steps: %s", report.n_steps, report.path)
        elif report.outcome is Outcome.LEFT:
            logger.error(
                "the episode is kept with %d steps as it was interrupted: %s; recover it with: %s %s",
                report.n_steps,
                current.reason,
                _RECOVER,
                report.path,
            )
        elif report.text:
            logger.error("%s", report.text)
        self._close(current, report.outcome.value, str(report.path), report.n_steps)

    def _close(self, current: _Current, outcome: str, path: str, steps: int) -> None:
        self._last = Finished(outcome=outcome, path=path, steps=steps, success=current.success, reason=current.reason)
        self._last_counts = (dict(current.session.missed), dict(current.session.dropped))
        self._current = None
        self._state = State.IDLE

    def _lacking(self) -> list[str]:
        """Sources that keep an episode from beginning."""
        if self._state is State.WAITING and self._current is not None:
            return self._needed(self._current.session.waiting_for())
        if self._state is State.IDLE:
            return self._needed([s for s in (STATE, *self._config.cameras) if s not in self._latest.arrived])
        return []

    def _needed(self, sources: list[str]) -> list[str]:
        lacks_command = self._config.commanded == "required" and not self._tracker.arm_commanded
        return [*sources, ARM_COMMAND] if lacks_command and ARM_COMMAND not in sources else sources
