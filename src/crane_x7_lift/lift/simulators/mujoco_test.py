from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mujoco
import numpy as np
import pytest

from lift import make_env
from lift.interface import CameraView, Simulator
from lift.simulators.mujoco import MujocoSimulator
from lift.tasks.pick_up import PICK_UP

ENV_ID = PICK_UP.env_id
PRIMARY = CameraView(name="primary", width=128, height=128)


def make(**settings: object) -> MujocoSimulator:
    env = make_env("mujoco", ENV_ID, **settings)  # pyright: ignore[reportArgumentType]
    assert isinstance(env, MujocoSimulator)
    return env


def fingerprint(seed: int) -> str:
    """Of the images, states and poses of a short motion."""
    env = make_env(
        "mujoco", ENV_ID, cameras=(PRIMARY, CameraView(name="wrist", width=48, height=32)), disturbance=0.012
    )
    digest = hashlib.sha256()
    observations = env.reset(np.array([seed], dtype=np.int64))
    for step in range(4):
        (observation,) = observations
        for name in sorted(observation.images):
            digest.update(observation.images[name].tobytes())
        digest.update(observation.state.tobytes() + env.task_state.tobytes())
        observations = env.step(observation.state[None] + np.float32(0.01 * step)).observations
    env.close()
    return digest.hexdigest()


def test_another_process_sees_and_does_the_same_bit_by_bit() -> None:
    code = "from lift.simulators import mujoco_test as t; print(t.fingerprint(3))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint(3)
    assert fingerprint(3) != fingerprint(4)


def red_at(env: MujocoSimulator, image: np.ndarray) -> np.ndarray | None:
    """float64 [2] m, where the middle of what is red in the primary image lies at the cube's height, if anything is."""
    pixels = image.astype(np.float64)
    red = (pixels[..., 0] > 60) & (pixels[..., 0] > 2 * pixels[..., 1]) & (pixels[..., 0] > 2 * pixels[..., 2])
    if red.sum() < 8:
        return None
    row, column = (values.mean() for values in np.nonzero(red))
    camera, height = env._model.camera("primary"), image.shape[0]
    focal = 0.5 * height / np.tan(0.5 * np.radians(camera.fovy[0]))
    # MuJoCo's cameras look along -z, y is up.
    ray = np.array([(column + 0.5 - 0.5 * image.shape[1]) / focal, -(row + 0.5 - 0.5 * height) / focal, -1.0])
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, camera.quat)
    ray = rotation.reshape(3, 3) @ ray
    return (camera.pos + ray * (PICK_UP.cube.edge / 2 - camera.pos[2]) / ray[2])[:2]


def test_the_cube_is_drawn_where_it_is_or_elsewhere_on_demand() -> None:
    """What decides whether a policy looks: images differ, the motion does not by a bit."""
    seen = 0
    with closing(make(cameras=(PRIMARY,))) as honest, closing(make(cameras=(PRIMARY,), draw_elsewhere=True)) as lying:
        for seed in range(20):
            seeds = np.array([seed])
            (true,), (false,) = honest.reset(seeds), lying.reset(seeds)
            place = honest.task_state[0, :2]
            assert true.images["primary"].tobytes() != false.images["primary"].tobytes()
            for _ in range(2):
                np.testing.assert_array_equal(true.state, false.state)
                np.testing.assert_array_equal(honest.task_state, lying.task_state)
                # The gripper may hide a part of the cube, hence 15 mm.
                if (shown := red_at(honest, true.images["primary"])) is not None:
                    assert np.hypot(*(shown - place)) < 0.015
                    seen += 1
                if (shown := red_at(lying, false.images["primary"])) is not None:
                    assert np.hypot(*(shown - place)) > 0.035
                target = true.state[None] + np.float32(0.02)
                true, false = honest.step(target).observations[0], lying.step(target).observations[0]
    assert seen > 30


def test_elsewhere_is_in_the_region_and_at_least_5_cm_away() -> None:
    with closing(make(cameras=(), draw_elsewhere=True)) as env:
        x, y, half = PICK_UP.region
        for seed in range(50):
            env.reset(np.array([seed]))
            assert np.hypot(*env._offset[0]) >= 0.05
            drawn = env.task_state[0, :2] + env._offset[0]
            assert np.abs(drawn - (x, y)).max() <= half + 1e-3
            again = env._offset.copy()
            env.reset(np.array([seed]))
            np.testing.assert_array_equal(env._offset, again)


@pytest.fixture
def disturbed() -> Iterator[tuple[Simulator, Simulator]]:
    """The same simulator without and with disturbance."""
    plain, moved = make(cameras=()), make(cameras=(), disturbance=0.012)
    yield plain, moved
    plain.close()
    moved.close()


def test_a_disturbance_moves_the_arm_and_not_what_was_commanded(disturbed: tuple[Simulator, Simulator]) -> None:
    plain, moved = disturbed
    errors = []
    for seed in range(5):
        (first,), (other,) = plain.reset(np.array([seed])), moved.reset(np.array([seed]))
        np.testing.assert_array_equal(first.state, other.state)
        assert first.commanded is not None
        target = first.commanded[None]
        for _ in range(20):
            undisturbed, disturbed_ = plain.step(target).observations[0], moved.step(target).observations[0]
            assert disturbed_.commanded is not None
            np.testing.assert_array_equal(disturbed_.commanded, target[0])
            errors.append(disturbed_.state - undisturbed.state)
    spread = np.array(errors).std(axis=0)
    assert (spread[:7] > 0.004).all(), spread
    assert (spread[:7] < 0.02).all(), spread
    # The grip is left alone; the finger only feels the hand being moved.
    assert spread[7] < 0.001


def test_a_cube_off_the_table_ends_the_episode_without_success() -> None:
    with closing(make(cameras=())) as env:
        (observation,) = env.reset(np.array([1]))
        env._data[0].joint("cube").qpos[0] = 0.6
        result = env.step(observation.state[None])
        assert result.terminated[0]
        assert not result.success[0]
        assert not result.truncated[0]
        assert result.reward[0] == 0.0


def test_physics_that_diverges_is_an_error_and_what_mujoco_says_of_it_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """MuJoCo would go on from its own initial pose as if nothing had happened, but for a file where one works."""
    monkeypatch.chdir(tmp_path)
    with closing(make(cameras=())) as env:
        (observation,) = env.reset(np.array([1]))
        env._data[0].joint("cube").qvel[0] = np.nan
        with pytest.raises(FloatingPointError, match="the physics of environment 0 diverged"):
            env.step(observation.state[None])
        env.reset(np.array([1]))
        env.step(observation.state[None])
    assert "Nan, Inf or huge value in QVEL" in caplog.text
    assert list(tmp_path.iterdir()) == []
