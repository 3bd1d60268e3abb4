from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import mujoco
import numpy as np
import pytest

from crane_x7_vla import kinematics
from lift.interface import CameraView
from lift.make import make_env
from lift.scenes import Scene, SceneSampler
from lift.simulators.mujoco import MujocoSimulator
from lift.tasks.pick_up import COLOURS, PICK_UP

PRIMARY = CameraView(name="primary", width=128, height=128)
CAMERAS = (PRIMARY, CameraView(name="wrist", width=64, height=48))
Make = Callable[..., SceneSampler]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[SceneSampler] = []

    def make_one(
        *, alone: float = 0.4, randomize: bool = True, cameras: tuple[CameraView, ...] = (PRIMARY,)
    ) -> SceneSampler:
        made.append(SceneSampler(cameras, alone=alone, randomize=randomize))
        return made[-1]

    yield make_one
    for sampler in made:
        sampler.close()


def draw(sampler: SceneSampler, count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sampler.sample(rng) for _ in range(count)]


def test_plain_scenes_look_exactly_like_the_simulator(make: Make) -> None:
    """What is learnt from scenes holds for episodes: the same model, light, cameras and colours, to the byte."""
    sampler = make(alone=1.0, randomize=False, cameras=CAMERAS)
    rng = np.random.default_rng(0)
    compared = 0
    with closing(make_env("mujoco", PICK_UP.env_id, cameras=CAMERAS)) as env:
        assert isinstance(env, MujocoSimulator)
        env.reset(np.array([0]))
        data = env._data[0]
        for _ in range(40):
            scene = sampler.sample(rng)
            if scene.named != PICK_UP.cube.colour:
                continue
            drawn = sampler._data
            data.qpos[:9] = drawn.qpos[:9]
            data.joint(PICK_UP.cube.name).qpos[:] = drawn.joint(scene.named).qpos
            np.testing.assert_array_equal(data.qpos[:8].astype(np.float32), scene.state)
            for name, image in env._render(0).items():
                assert image.tobytes() == scene.images[name].tobytes(), name
            compared += 1
    assert compared > 4


def test_the_same_seed_gives_the_same_scenes(make: Make) -> None:
    for one, other in zip(draw(make(), 5), draw(make(), 5), strict=True):
        assert one.images["primary"].tobytes() == other.images["primary"].tobytes()
        np.testing.assert_array_equal(one.state, other.state)
        np.testing.assert_array_equal(one.position, other.position)
        assert one.named == other.named
    assert draw(make(), 1, seed=1)[0].images["primary"].tobytes() != draw(make(), 1)[0].images["primary"].tobytes()


def test_labels_fit_each_other(make: Make) -> None:
    scenes = draw(make(cameras=()), 300)
    for scene in scenes:
        assert scene.named in COLOURS
        np.testing.assert_allclose(scene.from_tip, scene.position - kinematics.tip(scene.state[:7]), atol=1e-6)
        assert -np.pi / 4 <= scene.yaw < np.pi / 4
        assert scene.position[2] >= 0.015 - 1e-6
        apart = np.hypot(*(scene.others - scene.position[:2]).T)
        assert (apart > 0.04).all()
    x, y, half = PICK_UP.region
    places = np.array([scene.position[:2] for scene in scenes])
    assert places[:, 0].min() < x - half
    assert places[:, 0].max() > x + half
    assert places[:, 1].min() < y - half
    assert places[:, 1].max() > y + half
    lonely = np.mean([len(scene.others) == 0 for scene in scenes])
    assert 0.3 < lonely < 0.5
    assert {scene.named for scene in scenes} == set(COLOURS)


def colour_of(pixel: np.ndarray) -> str | None:
    """The named colour a pixel is nearest to in hue; None for grey."""
    if np.ptp(pixel) < 0.3 * pixel.max():
        return None
    likeness = {name: float(pixel @ colour) / float(np.linalg.norm(colour)) for name, colour in COLOURS.items()}
    return max(likeness, key=lambda name: likeness[name])


@pytest.mark.parametrize("randomize", [False, True])
def test_the_named_colour_is_seen_where_the_label_says(make: Make, randomize: bool) -> None:
    sampler = make(randomize=randomize)
    model, data = sampler._model, sampler._data
    camera = model.camera("primary").id
    rng = np.random.default_rng(0)
    visible = 0
    for _ in range(60):
        scene = sampler.sample(rng)
        way = scene.position.astype(np.float64) - data.cam_xpos[camera]
        hit = np.zeros(1, dtype=np.int32)
        mujoco.mj_ray(model, data, data.cam_xpos[camera], way / np.linalg.norm(way), None, 1, -1, hit)
        if model.geom(hit[0]).name != scene.named:
            continue
        visible += 1
        right, up, back = data.cam_xmat[camera].reshape(3, 3).T @ way
        focal = 64 / np.tan(0.5 * np.radians(model.cam_fovy[camera]))
        column, row = 64 + focal * right / -back, 64 - focal * up / -back
        # Beside an edge of the gripper, the pixel itself may be the gripper's.
        patch = scene.images["primary"][int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2]
        assert scene.named in {colour_of(pixel) for pixel in patch.reshape(-1, 3).astype(np.float64)}
    assert visible > 30


def test_randomising_varies_around_the_plain_scene_and_does_not_drift(make: Make) -> None:
    sampler = make()
    plain = {name: value.copy() for name, value in sampler._plain.items()}
    looks = []
    for scene in draw(sampler, 100):
        looks.append(scene.images["primary"].mean())
        model = sampler._model
        assert np.abs(model.cam_pos - plain["cam_pos"]).max() < 0.012
        assert np.abs(model.mat_rgba - plain["mat_rgba"]).max() < 0.35
        np.testing.assert_allclose(np.linalg.norm(model.cam_quat, axis=1), 1.0)
    assert np.std(looks) > 3
    for name, value in sampler._plain.items():
        np.testing.assert_array_equal(value, plain[name])
