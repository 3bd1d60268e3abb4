from __future__ import annotations

import numpy as np

from lift import make_env
from lift.expert import DISTURBANCE, PickUpExpert
from lift.rollout import ExpertDriver, rollout
from lift.tasks.pick_up import PICK_UP


def test_the_expert_succeeds_in_at_least_38_of_40_disturbed_episodes() -> None:
    env = make_env("mujoco", PICK_UP.env_id, num_envs=4, cameras=(), disturbance=DISTURBANCE)
    results = list(rollout(env, ExpertDriver(PickUpExpert(PICK_UP)), range(500, 540)))
    env.close()
    assert len(results) == 40
    assert sum(result.success for result in results) >= 38
    # A demonstration ends by success, well before the time is up.
    assert all(result.terminated and not result.truncated for result in results if result.success)
    assert np.mean([result.steps for result in results if result.success]) < 45


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
