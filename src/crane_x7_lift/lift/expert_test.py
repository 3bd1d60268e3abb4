from __future__ import annotations

import numpy as np

from lift import make_env
from lift.expert import PickUpExpert
from lift.tasks.pick_up import PICK_UP


def test_the_expert_succeeds_in_95_of_100_disturbed_episodes() -> None:
    """Success, end and time limit come apart from each other: what is demonstrated is not truncated."""
    env = make_env("mujoco", PICK_UP.env_id, num_envs=40, cameras=(), disturbance=0.012)
    expert = PickUpExpert(PICK_UP)
    observations = env.reset(np.arange(500, 540))
    running, succeeded = np.ones(40, dtype=bool), np.zeros(40, dtype=bool)
    while running.any():
        task_state = env.task_state
        targets = np.stack([o.commanded for o in observations if o.commanded is not None])
        for index in np.flatnonzero(running):
            targets[index] = expert.act(observations[index].state, task_state[index], targets[index])
        result = env.step(targets)
        observations = result.observations
        np.testing.assert_array_equal(result.reward, result.success.astype(np.float32))
        assert result.terminated[result.success].all()
        succeeded |= running & result.success
        running &= ~(result.terminated | result.truncated)
    assert succeeded.sum() >= 38
    env.close()


def test_targets_are_within_the_joint_limits_and_need_nothing_but_their_arguments() -> None:
    expert, other = PickUpExpert(PICK_UP), PickUpExpert(PICK_UP)
    rng = np.random.default_rng(0)
    robot = PICK_UP.robot
    for _ in range(50):
        state = rng.uniform(robot.lower, robot.upper).astype(np.float32)
        task_state = np.append(PICK_UP.sample_position(rng), [1.0, 0.0, 0.0, 0.0]).astype(np.float32)
        target = expert.act(state, task_state, state)
        assert target.dtype == np.float32
        np.testing.assert_array_equal(robot.clamp(target), target)
        np.testing.assert_array_equal(other.act(state, task_state, state), target)
