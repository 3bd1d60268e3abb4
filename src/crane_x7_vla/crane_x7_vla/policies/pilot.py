"""Policy, executor and safety joined: from observations to the target that may be commanded now.

Without ROS and without threads. ``think`` takes long and touches nothing; everything else is quick. Whatever goes wrong
ends in holding the target in force, with a reason.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crane_x7_vla import safety
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.policies.executor import Executor, RunningChunk, upcoming
from crane_x7_vla.safety import SafetyLimits
from crane_x7_vla.types import ActionChunk, Observation

if TYPE_CHECKING:
    # Importing it loads torch, which a node with a remote policy does without.
    from crane_x7_vla.policies.policy import Policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What thinking about an observation brought: a chunk, or None and why. latency: s of wall time.

    observation: None where it could not even be assembled.
    """

    observation: Observation | None
    chunk: ActionChunk | None = None
    failure: str | None = None
    latency: float = 0.0


@dataclass(slots=True)
class Counts:
    """What happened since the pilot was made. holds: answers refused or failed, and times observations went stale."""

    inferences: int = 0
    holds: int = 0
    clamped: int = 0


class Pilot:
    """Drives one arm by one policy. Times are seconds of the observations' clock."""

    def __init__(self, policy: Policy, *, limits: SafetyLimits, n_action_steps: int | None = None) -> None:
        """n_action_steps: rows executed of each chunk, the policy's own number by default.

        Raises ConfigError when the policy's chunks are shorter than that.
        """
        self.policy = policy
        self.robot = policy.spec.robot
        self.n_action_steps = policy.spec.n_action_steps if n_action_steps is None else n_action_steps
        if not 1 <= self.n_action_steps <= policy.spec.action_horizon:
            raise ConfigError(
                f"n_action_steps is {self.n_action_steps}, but the policy predicts {policy.spec.action_horizon} "
                f"actions at once; expected 1 to {policy.spec.action_horizon}"
            )
        self.counts = Counts()
        self.latency = 0.0
        self.hold_reason: str | None = None
        self.clamp_reasons: tuple[str, ...] = ()
        self._limits = limits
        self._executor: Executor | None = None
        self._last_failure: str | None = None

    def begin(self, state: np.ndarray, stamp: float) -> None:
        """Start anew: no plan, and the measured ``state`` [S] as the target in force, as a controller starts."""
        self._executor = Executor(self.robot.clamp(state), stamp, n_action_steps=self.n_action_steps)
        self.hold_reason = None

    def forget(self) -> None:
        """The arm is no longer where it was left (simulator reset, operator stopped): ``begin`` is needed again."""
        self._executor = None

    @property
    def begun(self) -> bool:
        """Whether ``begin`` was called since the last ``forget``."""
        return self._executor is not None

    def target(self, stamp: float) -> np.ndarray:
        """float32 [S] rad, what to command for ``stamp``."""
        return self._begun().target(stamp)

    def needs_chunk(self, stamp: float) -> bool:
        """Whether to ``think`` about an observation made at ``stamp``."""
        return self._begun().needs_chunk(stamp)

    def running(self, stamp: float) -> RunningChunk | None:
        """What will be executed while the policy thinks about an observation made at ``stamp``."""
        return self._begun().running(stamp, latency=self.latency)

    def think(self, observation: Observation, running: RunningChunk | None) -> Answer:
        """Ask the policy. Raises nothing; may run in another thread than the rest, one call at a time."""
        begin = time.monotonic()
        chunk, failure = None, None
        try:
            (chunk,) = self.policy.infer([observation], running=[running])
        except Exception as error:
            # Whatever a policy does, the arm holds and the reason is told; the traceback once in a row, it would come
            # 10 times a second.
            failure = f"the policy failed: {' '.join(f'{type(error).__name__}: {error}'.split())}"
            if failure != self._last_failure:
                logger.exception("the policy failed, holding")
        self._last_failure = failure
        return Answer(observation=observation, chunk=chunk, failure=failure, latency=time.monotonic() - begin)

    def take(self, answer: Answer, now: float) -> bool:
        """Follow the answer from ``now`` on if it is fit to be followed, else hold; whether it is followed."""
        executor = self._begun()
        self.counts.inferences += 1
        self.latency = answer.latency
        self.clamp_reasons = ()
        self.hold_reason = None
        if answer.chunk is None or answer.observation is None:
            self.hold(now, answer.failure or "no answer")
            return False
        rest = upcoming(answer.chunk, now)
        if rest is None:
            horizon = len(answer.chunk.actions) * answer.chunk.dt
            self.hold(now, f"the answer took {answer.latency:.2f} s, longer than the {horizon:.2f} s it plans ahead")
            return False
        verdict = safety.check(
            rest,
            answer.observation,
            now=now,
            robot=self.robot,
            limits=self._limits,
            current=executor.target(now),
        )
        if verdict.chunk is None:
            self.hold(now, "; ".join(verdict.reasons))
            return False
        if verdict.reasons:
            self.counts.clamped += 1
            self.clamp_reasons = verdict.reasons
        executor.follow(verdict.chunk, now=now, observed=answer.observation.stamp)
        return True

    def hold(self, now: float, reason: str) -> None:
        """Drop the plan, stay at the target in force, and remember why."""
        if self._executor is not None:
            self._executor.hold(now)
            self.counts.holds += self.hold_reason is None
        self.hold_reason = reason

    def _begun(self) -> Executor:
        if self._executor is None:
            raise RuntimeError("begin() comes first")
        return self._executor
