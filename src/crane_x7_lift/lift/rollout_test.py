from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.types import Observation
from lift.interface import Simulator, SimulatorSpec, StepResult
from lift.rollout import EpisodeResult, rollout


class Countdown(Simulator):
    """An episode of seed s takes 1 + s % 5 steps; even seeds succeed, odd ones run out of time."""

    def __init__(self, num_envs: int) -> None:
        self.spec = SimulatorSpec(
            env_id="Countdown",
            robot=CRANE_X7,
            cameras=(),
            num_envs=num_envs,
            control_hz=10.0,
            max_steps=80,
            instruction="wait",
            task_state_names=("seed",),
        )
        self.seeds = np.full(num_envs, -1)
        self.steps = np.zeros(num_envs, dtype=int)
        self.commanded = np.zeros((num_envs, CRANE_X7.size), dtype=np.float32)
        self.resets: list[list[int]] = []

    def reset(self, seeds: np.ndarray, mask: np.ndarray | None = None) -> list[Observation]:
        chosen = np.ones(len(seeds), dtype=bool) if mask is None else mask
        self.resets.append(np.flatnonzero(chosen).tolist())
        self.seeds[chosen], self.steps[chosen], self.commanded[chosen] = seeds[chosen], 0, 0.0
        return self.observations()

    def observations(self) -> list[Observation]:
        return [
            Observation(
                images={},
                state=np.full(CRANE_X7.size, seed, dtype=np.float32),
                instruction="wait",
                stamp=step / 10,
                commanded=commanded.copy(),
            )
            for seed, step, commanded in zip(self.seeds, self.steps, self.commanded, strict=True)
        ]

    def step(self, actions: np.ndarray) -> StepResult:
        self.steps += 1
        self.commanded = actions.copy()
        over = self.steps >= 1 + self.seeds % 5
        success = over & (self.seeds % 2 == 0)
        return StepResult(
            observations=self.observations(),
            reward=success.astype(np.float32),
            terminated=success,
            truncated=over & ~success,
            success=success,
            task_state=self.task_state,
        )

    @property
    def task_state(self) -> np.ndarray:
        return self.seeds[:, None].astype(np.float32)

    def close(self) -> None:
        pass


class Witness:
    """Commands the seed it sees and notes what it was told."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.asked: list[list[int]] = []

    def begin(self, env: int, observation: Observation) -> None:
        assert observation.stamp == 0.0
        self.begun.append((env, int(observation.state[0])))

    def targets(self, envs: Sequence[int], observations: Sequence[Observation], task_state: np.ndarray) -> np.ndarray:
        self.asked.append(list(envs))
        np.testing.assert_array_equal(task_state[:, 0], [o.state[0] for o in observations])
        return np.stack([o.state for o in observations])


@pytest.mark.parametrize("num_envs", [1, 3, 20])
def test_each_seed_is_played_once_to_its_end(num_envs: int) -> None:
    witness = Witness()
    results = list(rollout(Countdown(num_envs), witness, range(10, 20)))
    assert sorted(results, key=lambda r: r.seed) == [
        EpisodeResult(
            seed=seed, success=seed % 2 == 0, terminated=seed % 2 == 0, truncated=seed % 2 == 1, steps=1 + seed % 5
        )
        for seed in range(10, 20)
    ]
    assert sorted(seed for _, seed in witness.begun) == list(range(10, 20))


def test_environments_without_an_episode_are_left_alone() -> None:
    env, witness = Countdown(3), Witness()
    list(rollout(env, witness, [4, 1]))
    assert witness.asked == [[0, 1], [0, 1], [0], [0], [0]]
    assert env.resets == [[0, 1, 2]]
    # The third one holds; the second one keeps its last target.
    np.testing.assert_array_equal(env.commanded[:, 0], [4, 1, 0])


def test_the_next_episode_begins_where_one_ended() -> None:
    env, witness = Countdown(2), Witness()
    list(rollout(env, witness, [0, 4, 2]))
    assert env.resets == [[0, 1], [0]]
    assert witness.begun == [(0, 0), (1, 4), (0, 2)]


def test_no_seeds_no_episodes() -> None:
    assert list(rollout(Countdown(1), Witness(), [])) == []
