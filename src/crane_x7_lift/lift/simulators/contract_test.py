"""What every simulator of the table keeps, for every task."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from crane_x7_vla.types import Observation
from lift import make_env
from lift.interface import CameraView, Simulator
from lift.make import SIMULATORS, TASKS

CAMERAS = (CameraView(name="primary", width=40, height=32), CameraView(name="wrist", width=32, height=32))
Make = Callable[..., Simulator]


@pytest.fixture(params=[(simulator, task) for simulator in SIMULATORS for task in TASKS], ids="-".join)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """``make_env`` of one simulator and task, by default without cameras; what it makes is closed in the end."""
    simulator, task = request.param
    made: list[Simulator] = []

    def make_one(num_envs: int = 1, *, cameras: tuple[CameraView, ...] = (), max_steps: int = 80) -> Simulator:
        made.append(make_env(simulator, task, num_envs=num_envs, cameras=cameras, max_steps=max_steps))
        return made[-1]

    yield make_one
    for env in made:
        env.close()


def seeds(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def swing(env: Simulator, steps: int) -> np.ndarray:
    """float32 [steps, N, A]: targets that move every joint, the same for every environment."""
    home = np.array(env.spec.robot.home)
    waves = 0.3 * np.sin(0.7 * np.arange(1, steps + 1)[:, None] + np.arange(home.size)[None])
    targets = env.spec.robot.clamp(home + waves)
    return np.repeat(targets[:, None], env.spec.num_envs, axis=1)


def assert_same(one: Observation, other: Observation) -> None:
    assert one.images.keys() == other.images.keys()
    for camera, image in one.images.items():
        assert image.tobytes() == other.images[camera].tobytes(), camera
    np.testing.assert_array_equal(one.state, other.state)
    assert one.commanded is not None
    assert other.commanded is not None
    np.testing.assert_array_equal(one.commanded, other.commanded)
    assert one.stamp == other.stamp


def test_the_spec_says_what_there_is(make: Make) -> None:
    env = make(2, cameras=CAMERAS, max_steps=7)
    assert env.spec.num_envs == 2
    assert env.spec.max_steps == 7
    assert env.spec.cameras == CAMERAS
    assert env.spec.control_hz == 10.0
    assert env.spec.instruction
    env.reset(seeds(1, 2))
    assert env.task_state.shape == (2, len(env.spec.task_state_names))
    assert env.task_state.dtype == np.float32


def test_observations_are_whole(make: Make) -> None:
    env = make(2, cameras=CAMERAS)
    robot = env.spec.robot
    for step, observations in enumerate(
        [env.reset(seeds(1, 2)), *(env.step(target).observations for target in swing(env, 2))]
    ):
        assert len(observations) == 2
        for observation in observations:
            assert {name: image.shape for name, image in observation.images.items()} == {
                "primary": (32, 40, 3),
                "wrist": (32, 32, 3),
            }
            assert all(image.std() > 5 for image in observation.images.values())
            assert observation.state.shape == (robot.size,)
            assert (observation.state >= np.array(robot.lower) - 0.01).all()
            assert (observation.state <= np.array(robot.upper) + 0.01).all()
            assert observation.commanded is not None
            assert observation.instruction == env.spec.instruction
            assert observation.stamp == pytest.approx(step / 10)


def test_results_have_one_entry_per_environment(make: Make) -> None:
    env = make(3)
    env.reset(seeds(1, 2, 3))
    (target,) = swing(env, 1)
    result = env.step(target)
    assert result.reward.shape == (3,)
    assert result.reward.dtype == np.float32
    for flags in (result.terminated, result.truncated, result.success):
        assert flags.shape == (3,)
        assert flags.dtype == np.bool_
        assert not flags.any()
    np.testing.assert_array_equal(result.task_state, env.task_state)


def test_seeds_reproduce_bit_by_bit_wherever_they_run(make: Make) -> None:
    alone, together = make(1, cameras=CAMERAS), make(2, cameras=CAMERAS)
    (first,) = alone.reset(seeds(11))
    for round_ in range(2):
        other = together.reset(seeds(12, 11))
        assert_same(first, other[1])
        assert first.images["primary"].tobytes() != other[0].images["primary"].tobytes()
        for target_one, target_two in zip(swing(alone, 5), swing(together, 5), strict=True):
            one, two = alone.step(target_one), together.step(target_two)
            assert_same(one.observations[0], two.observations[1])
            np.testing.assert_array_equal(one.task_state[0], two.task_state[1])
        if round_ == 0:
            assert_same(first, alone.reset(seeds(11))[0])


def test_cameras_do_not_touch_the_motion(make: Make) -> None:
    blind, seeing = make(1), make(1, cameras=CAMERAS)
    np.testing.assert_array_equal(blind.reset(seeds(5))[0].state, seeing.reset(seeds(5))[0].state)
    for target in swing(blind, 5):
        one, two = blind.step(target), seeing.step(target)
        assert not one.observations[0].images
        np.testing.assert_array_equal(one.observations[0].state, two.observations[0].state)
        np.testing.assert_array_equal(one.task_state, two.task_state)


def test_a_mask_resets_only_what_it_names(make: Make) -> None:
    env, untouched = make(3, cameras=CAMERAS), make(3, cameras=CAMERAS)
    targets = swing(env, 6)
    env.reset(seeds(1, 2, 3))
    untouched.reset(seeds(1, 2, 3))
    for target in targets[:3]:
        before = env.step(target).observations
        untouched.step(target)
    after = env.reset(seeds(9, 4, 9), mask=np.array([False, True, False]))
    assert_same(before[0], after[0])
    assert_same(before[2], after[2])
    assert after[1].stamp == 0.0
    fresh = make(1, cameras=CAMERAS)
    assert_same(fresh.reset(seeds(4))[0], after[1])
    for target in targets[3:]:
        result, expected = env.step(target), untouched.step(target)
        restarted = fresh.step(target[:1])
        for index in (0, 2):
            assert_same(result.observations[index], expected.observations[index])
        assert_same(result.observations[1], restarted.observations[0])
    assert [round(o.stamp, 6) for o in result.observations] == [0.6, 0.3, 0.6]


def test_the_first_reset_must_be_of_all(make: Make) -> None:
    env = make(2)
    with pytest.raises(ValueError, match=r"environments \[1\] were never reset"):
        env.reset(seeds(1, 2), mask=np.array([True, False]))
    with pytest.raises(ValueError, match="step before reset"):
        env.step(np.zeros((2, env.spec.robot.size), dtype=np.float32))
    env.reset(seeds(1, 2))
    env.reset(seeds(1, 2), mask=np.array([False, False]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array([1]), r"seeds must be int64 \[2\], got int64 \[1\]"),
        (np.array([1, 2], dtype=np.int32), r"seeds must be int64 \[2\], got int32 \[2\]"),
        (np.array([[1, 2]]), r"seeds must be int64 \[2\], got int64 \[1, 2\]"),
        (np.array([3, -1]), "seeds must be 0 or more, got -1"),
    ],
)
def test_wrong_seeds_are_named(make: Make, given: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(2).reset(given)


def test_a_wrong_mask_is_named(make: Make) -> None:
    env = make(2)
    for mask, got in ((np.array([1, 0]), r"int64 \[2\]"), (np.array([True]), r"bool \[1\]")):
        with pytest.raises(ValueError, match=rf"mask must be bool \[2\], got {got}"):
            env.reset(seeds(1, 2), mask=mask)


def test_wrong_actions_are_named_and_change_nothing(make: Make) -> None:
    env, untouched = make(2), make(2)
    env.reset(seeds(1, 2))
    untouched.reset(seeds(1, 2))
    (target,) = swing(env, 1)
    size = env.spec.robot.size
    for wrong, message in (
        (target[:1], rf"actions must be float32 \[2, {size}\], got float32 \[1, {size}\]"),
        (target[:, :-1], rf"got float32 \[2, {size - 1}\]"),
        (target.astype(np.float64), rf"got float64 \[2, {size}\]"),
        (np.where(np.arange(size) == 3, np.float32(np.nan), target), "not finite"),
        (np.where(np.arange(size) == 3, np.float32(np.inf), target), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            env.step(wrong)
    one, other = env.step(target), untouched.step(target)
    for index in range(2):
        assert_same(one.observations[index], other.observations[index])


def test_targets_beyond_the_limits_are_held_at_them(make: Make) -> None:
    env = make(1)
    env.reset(seeds(1))
    robot = env.spec.robot
    far = np.full((1, robot.size), 9.0, dtype=np.float32)
    commanded = env.step(far).observations[0].commanded
    assert commanded is not None
    np.testing.assert_array_equal(commanded, np.array(robot.upper, dtype=np.float32))


def test_nothing_moves_by_itself_at_the_start(make: Make) -> None:
    env = make(1)
    (first,) = env.reset(seeds(3))
    before = env.task_state
    assert first.commanded is not None
    for _ in range(10):
        result = env.step(first.commanded[None])
    np.testing.assert_allclose(result.observations[0].state, first.state, atol=0.003)
    np.testing.assert_allclose(result.task_state, before, atol=1e-4)


def test_an_episode_is_truncated_and_does_not_reset_by_itself(make: Make) -> None:
    env = make(1, max_steps=3)
    env.reset(seeds(1))
    results = [env.step(target) for target in swing(env, 5)]
    assert [bool(r.truncated[0]) for r in results] == [False, False, True, True, True]
    assert not any(r.terminated[0] or r.success[0] for r in results)
    assert [round(r.observations[0].stamp, 6) for r in results] == [0.1, 0.2, 0.3, 0.4, 0.5]
    env.reset(seeds(1))
    assert not env.step(swing(env, 1)[0]).truncated[0]


def test_a_wild_policy_does_not_break_the_physics(make: Make) -> None:
    env = make(4)
    robot = env.spec.robot
    rng = np.random.default_rng(0)
    env.reset(seeds(1, 2, 3, 4))
    for _ in range(30):
        result = env.step(rng.uniform(robot.lower, robot.upper, (4, robot.size)).astype(np.float32))
        for observation in result.observations:
            assert (observation.state >= np.array(robot.lower) - 0.1).all()
            assert (observation.state <= np.array(robot.upper) + 0.1).all()


def test_a_closed_simulator_says_so(make: Make) -> None:
    env = make(1, cameras=CAMERAS)
    env.reset(seeds(1))
    env.close()
    env.close()
    with pytest.raises(ValueError, match="the simulator is closed"):
        env.reset(seeds(1))
    with pytest.raises(ValueError, match="the simulator is closed"):
        env.step(swing(env, 1)[0])
