"""Whole episodes in simulation: a driver moves the arms, the simulator says how it went."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from crane_x7_vla.types import Observation
from lift.expert import PickUpExpert
from lift.interface import Simulator


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeResult:
    """How the episode of ``seed`` ended after ``steps`` control periods; the flags are those of ``StepResult``."""

    seed: int
    success: bool
    terminated: bool
    truncated: bool
    steps: int


class Driver(Protocol):
    """Moves the arms of a simulator's environments."""

    def begin(self, env: int, observation: Observation) -> None:
        """A new episode of environment ``env`` starts with ``observation``."""
        ...

    def targets(self, envs: Sequence[int], observations: Sequence[Observation], task_state: np.ndarray) -> np.ndarray:
        """float32 [n, A] rad, the next targets of the environments ``envs``, whose observations and task_state [n, K]
        these are."""
        ...


class ExpertDriver:
    """The scripted expert, who sees the task's state."""

    def __init__(self, expert: PickUpExpert) -> None:
        self._expert = expert

    def begin(self, env: int, observation: Observation) -> None:
        """See ``Driver.begin``; the expert remembers nothing."""

    def targets(self, envs: Sequence[int], observations: Sequence[Observation], task_state: np.ndarray) -> np.ndarray:
        """See ``Driver.targets``."""
        return np.stack(
            [
                self._expert.act(observation.state, state, _in_force(observation))
                for observation, state in zip(observations, task_state, strict=True)
            ]
        )


def rollout(env: Simulator, driver: Driver, seeds: Sequence[int]) -> Iterator[EpisodeResult]:
    """Play one episode per seed, as many at a time as there are environments; results come as episodes end."""
    waiting = deque(seeds)
    if not waiting:
        return
    count = env.spec.num_envs
    # Where there are more environments than seeds, the rest waits in the first seed's start.
    current = np.array([waiting.popleft() if waiting else seeds[0] for _ in range(count)], dtype=np.int64)
    observations = env.reset(current)
    active = list(range(min(count, len(seeds))))
    steps = np.zeros(count, dtype=np.int64)
    for index in active:
        driver.begin(index, observations[index])
    while active:
        targets = np.stack([_in_force(observation) for observation in observations])
        targets[active] = driver.targets(active, [observations[i] for i in active], env.task_state[active])
        result = env.step(targets)
        observations = result.observations
        steps += 1
        fresh = np.zeros(count, dtype=bool)
        for index in list(active):
            if not (result.terminated[index] or result.truncated[index]):
                continue
            yield EpisodeResult(
                seed=int(current[index]),
                success=bool(result.success[index]),
                terminated=bool(result.terminated[index]),
                truncated=bool(result.truncated[index]),
                steps=int(steps[index]),
            )
            if waiting:
                current[index], steps[index], fresh[index] = waiting.popleft(), 0, True
            else:
                active.remove(index)
        if fresh.any():
            observations = env.reset(current, mask=fresh)
            for index in np.flatnonzero(fresh).tolist():
                driver.begin(index, observations[index])


def _in_force(observation: Observation) -> np.ndarray:
    """The target in force, float32 [S]; that of an arm that was told nothing is where it is."""
    return observation.state if observation.commanded is None else observation.commanded
