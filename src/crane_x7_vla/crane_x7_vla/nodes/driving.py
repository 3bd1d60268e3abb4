"""When the policy is asked and when targets are sent: lockstep with a simulator, or a stream in real time.

A driver gets every message's stamp from the node's callbacks and owns the pilot. Policies think in a worker thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

from crane_x7_vla.errors import ConfigError, DataError
from crane_x7_vla.nodes.messages import AT_ONCE
from crane_x7_vla.nodes.observing import ObservationBuffer
from crane_x7_vla.policies.pilot import Answer, Pilot
from crane_x7_vla.protocol import JOINT_STATES, NANOSECONDS, RESET_GAP

# Stamps are rounded to ns, so that periods differ by one.
_ROUNDING = 2
# Command periods between two ticks, after which the arm has waited while its plan ran on.
_LATE_PERIODS = 5


class Publish(Protocol):
    """Sends a target float32 [S] rad, to be reached ``duration`` ns after ``stamp`` ns or, with AT_ONCE, at once."""

    def __call__(self, target: np.ndarray, *, stamp: int, duration: int) -> None: ...


class Worker:
    """One thread that does one job after the other.

    failure: what a job raised; the worker does nothing more then.
    """

    def __init__(self, name: str) -> None:
        self.failure: Exception | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a job is waiting or being done."""
        with self._lock:
            return self._unfinished > 0

    def submit(self, job: Callable[[], None]) -> None:
        """Have ``job`` done after those before it."""
        with self._lock:
            self._unfinished += 1
        self._jobs.put(job)

    def stop(self, patience: float) -> None:
        """Take no more jobs; waits up to ``patience`` s for the one being done."""
        self._jobs.put(None)
        self._thread.join(patience)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # noqa: BLE001 - the node looks at it and ends
                self.failure = error
                return
            with self._lock:
                self._unfinished -= 1


class LockstepDriver:
    """Answers each complete instant with exactly one command that carries its stamp, also when holding.

    It waits for the rest of an instant and for the policy as long as it takes, so that nothing that is commanded
    depends on the speed of the machine. The simulator ends with an error when it has waited too long for a command
    after the first of an episode; before that one it cannot know whether anybody is driving, so ``waiting_for`` tells.
    """

    def __init__(
        self,
        pilot: Pilot,
        buffer: ObservationBuffer,
        publish: Publish,
        instruction: Callable[[], str],
        worker: Worker,
    ) -> None:
        self._pilot = pilot
        self._buffer = buffer
        self._publish = publish
        self._instruction = instruction
        self._worker = worker
        self._period = round(pilot.policy.spec.dt * NANOSECONDS)
        self._newest: int | None = None
        # Whether to answer, and how often that was begun; a command goes out under the lock, while both are as they
        # were when its instant came.
        self._lock = threading.Lock()
        self._running = False
        self._run = 0
        # Run and stamp of the last instant given to the worker.
        self._submitted: tuple[int, int] | None = None
        # Written by the worker alone: run and stamp of the last instant it is done with, of the last one answered, and
        # the answer.
        self._finished: tuple[int, int] | None = None
        self._answered: tuple[int, int] | None = None
        self._command: np.ndarray | None = None

    @property
    def pending(self) -> int | None:
        """The newest instant heard of (ns) that has not been answered."""
        if not self._running or self._newest is None or self._answered == (self._run, self._newest):
            return None
        return self._newest

    def waiting_for(self) -> str | None:
        """Why the newest instant has no answer yet, None when it has one."""
        stamp = self.pending
        if stamp is None:
            return None
        missing = [source if source == JOINT_STATES else f"camera {source}" for source in self._buffer.missing(stamp)]
        seconds = f"{stamp / NANOSECONDS:.3f} s"
        if missing:
            return f"no {' and no '.join(missing)} of {seconds}"
        # What could not be answered says why.
        return self._pilot.hold_reason if self._finished == (self._run, stamp) else f"the policy's answer to {seconds}"

    def start(self) -> None:
        """Answer from now on, beginning with the instant that is being waited for."""
        with self._lock:
            self._run += 1
            self._running = True
        if self._newest is not None:
            self.on_message(self._newest)

    def stop(self) -> None:
        """Answer no more, nor what is being thought about."""
        with self._lock:
            self._running = False

    def on_message(self, stamp: int) -> None:
        """A message stamped ``stamp`` ns is in the buffer."""
        self._newest = stamp
        instant = (self._run, stamp)
        if not self._running or self._buffer.missing(stamp):
            return
        # Once is enough until the worker is done with it: then the simulator repeats it because it heard no answer.
        if instant != self._submitted or instant == self._finished:
            self._submitted = instant
            self._worker.submit(lambda: self._step(*instant))

    def _step(self, run: int, stamp: int) -> None:
        """In the worker: decide and publish the command of instant ``stamp`` ns."""
        if not self._running or run != self._run:
            return
        if self._answered == (run, stamp):
            # Our command was sent before the simulator could hear us.
            self._send(run, stamp)
            return
        self._follow_clock(run, stamp)
        now, end = stamp / NANOSECONDS, (stamp + self._period) / NANOSECONDS
        try:
            if not self._pilot.begun:
                self._pilot.begin(self._buffer.state(stamp), now)
            if self._pilot.needs_chunk(now):
                observation = self._buffer.observe(
                    stamp, instruction=self._instruction(), commanded=self._pilot.target(now)
                )
                self._pilot.take(self._pilot.think(observation, self._pilot.running(now)), now)
        except DataError as error:
            self._pilot.hold(now, str(error))
        self._finished = (run, stamp)
        if self._pilot.begun:
            self._answered, self._command = (run, stamp), self._pilot.target(end)
            self._send(run, stamp)

    def _send(self, run: int, stamp: int) -> None:
        with self._lock:
            if self._running and run == self._run and self._command is not None:
                self._publish(self._command, stamp=stamp, duration=self._period)

    def _follow_clock(self, run: int, stamp: int) -> None:
        """Start anew after a gap; raises ConfigError when the simulator runs at another rate than the policy."""
        last_run, last = self._answered or (run, None)
        if last is None or last_run != run or stamp < last or stamp - last >= RESET_GAP:
            self._pilot.forget()
            return
        if abs(stamp - last - self._period) > _ROUNDING:
            trained = f"{NANOSECONDS / self._period:g}"
            raise ConfigError(
                f"observations come at {NANOSECONDS / (stamp - last):g} Hz, but the policy was trained at "
                f"{trained} Hz; start the simulator with control_hz:={trained}"
            )


class RealtimeDriver:
    """Streams interpolated targets; asks the policy about the newest instant whenever a new chunk is due.

    All is called in one thread; only thinking is done in the worker.
    """

    def __init__(
        self,
        pilot: Pilot,
        buffer: ObservationBuffer,
        publish: Publish,
        instruction: Callable[[], str],
        worker: Worker,
        *,
        command_hz: float,
        max_age: float,
    ) -> None:
        """max_age: s, of the newest message of any source, before the arm is held."""
        self._pilot = pilot
        self._buffer = buffer
        self._publish = publish
        self._instruction = instruction
        self._worker = worker
        self._period = round(NANOSECONDS / command_hz)
        self._max_age = max_age
        self._tolerance = pilot.policy.spec.dt / 2
        # An answer that takes longer has nothing left to say.
        self._horizon = round(pilot.policy.spec.action_horizon * pilot.policy.spec.dt * NANOSECONDS)
        self._running = False
        self._ticked: int | None = None
        self._sent: np.ndarray | None = None
        self._last: int | None = None
        self._asked: int | None = None
        self._asked_at = 0
        self._answer: tuple[int, Answer] | None = None
        # Answers to questions asked before the last hold or start are of no use.
        self._generation = 0

    def start(self) -> None:
        """Drive from now on, beginning from where the arm is."""
        self._forget()
        self._running = True

    def stop(self) -> None:
        """Send the last target once more, then nothing."""
        if self._sent is not None:
            self._publish(self._sent, stamp=AT_ONCE, duration=0)
        self._forget()
        self._running = False

    def tick(self, now: int) -> None:
        """Once per command period, at ``now`` ns of the clock of the stamps."""
        if not self._running:
            return
        passed = 0 if self._ticked is None else now - self._ticked
        self._ticked = now
        if passed >= RESET_GAP:
            self._start_over(now)
        elif self._sent is not None and not 0 <= passed <= _LATE_PERIODS * self._period:
            # This process was stopped, or the clock was set: the arm is where it was left, the plan is not.
            self._pilot.begin(self._sent, now / NANOSECONDS)
            self._hold(now, f"{passed / NANOSECONDS:.2f} s passed between two commands")
            return
        instant = self._buffer.newest()
        problem = self._buffer.problem(now, self._max_age)
        if problem is not None or instant is None:
            self._hold(now, problem or "nothing seen yet")
            return
        if self._last is not None and (instant < self._last or instant - self._last >= RESET_GAP):
            self._start_over(now)
        self._last = instant
        try:
            if not self._pilot.begun:
                self._pilot.begin(self._buffer.state(instant, self._tolerance), now / NANOSECONDS)
        except DataError as error:
            self._hold(now, str(error))
            return
        thinking = now - self._asked_at
        if self._worker.busy and thinking > self._horizon:
            self._hold(now, f"the policy has not answered for {thinking / NANOSECONDS:.1f} s")
            return
        answer, self._answer = self._answer, None
        if answer is not None and answer[0] == self._generation:
            self._pilot.take(answer[1], now / NANOSECONDS)
        if not self._worker.busy and instant != self._asked and self._pilot.needs_chunk(instant / NANOSECONDS):
            self._ask(instant, now)
        self._send(now)

    def _ask(self, instant: int, now: int) -> None:
        generation = self._generation
        seconds = instant / NANOSECONDS
        commanded, running = self._pilot.target(seconds), self._pilot.running(seconds)
        self._asked, self._asked_at = instant, now

        def think() -> None:
            try:
                observation = self._buffer.observe(
                    instant, instruction=self._instruction(), commanded=commanded, tolerance=self._tolerance
                )
            except DataError as error:
                answer = Answer(observation=None, failure=str(error))
            else:
                answer = self._pilot.think(observation, running)
            self._answer = (generation, answer)

        self._worker.submit(think)

    def _hold(self, now: int, reason: str) -> None:
        self._generation += 1
        self._pilot.hold(now / NANOSECONDS, reason)
        if self._pilot.begun:
            self._send(now)

    def _start_over(self, now: int) -> None:
        """The arm may be anywhere; what the policy is still thinking about was asked in another time."""
        self._forget()
        self._asked_at = now

    def _forget(self) -> None:
        self._generation += 1
        self._last = self._asked = self._sent = None
        self._pilot.forget()

    def _send(self, now: int) -> None:
        self._sent = self._pilot.target((now + self._period) / NANOSECONDS)
        self._publish(self._sent, stamp=AT_ONCE, duration=0)
