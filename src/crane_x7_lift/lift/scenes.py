"""Random scenes of named cubes under a random arm, rendered with the simulator's own model and cameras.

For teaching a model where the named object is. Nothing moves here: joint angles and object poses are set and drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from crane_x7_vla import kinematics
from lift.interface import CameraView
from lift.rendering import choose_gl
from lift.simulators.mujoco import add_cube, new_renderer, place_for_drawing, scene_spec
from lift.tasks.pick_up import COLOURS, Cube

_EDGE = 0.03
# Where cubes lie and finger tips go, m in base_link: wider than any task's region.
_TABLE_LOW, _TABLE_HIGH = np.array([0.15, -0.09]), np.array([0.32, 0.09])
_TIP_LOW, _TIP_HIGH = np.array([0.13, -0.12, 0.02]), np.array([0.33, 0.12, 0.22])
_APART = 0.045
_AWAY = (0.0, 0.0, -2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """images: {camera: uint8 [H, W, 3] RGB}. state: float32 [8] rad. named: colour of the cube that is asked for.

    position: float32 [3] m, the named cube's centre in base_link. from_tip: the same, from the finger tips.
    yaw: rad, in [-pi/4, pi/4). others: float32 [M, 2] m, where the other cubes lie. pixels: {camera: float64 [2]}, the
    named cube's centre in the image, right and down as shares of its size, hidden or not; outside [0, 1] it is out of
    view, NaN behind the camera.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    named: str
    position: np.ndarray
    from_tip: np.ndarray
    yaw: float
    others: np.ndarray
    pixels: dict[str, np.ndarray]


class SceneSampler:
    """Draws scenes from a generator; the same generator state gives the same scenes.

    alone: share of scenes with one cube only. randomize: vary light, colours, table and camera poses a little.
    """

    def __init__(self, cameras: Sequence[CameraView], *, alone: float = 0.4, randomize: bool = True) -> None:
        """Raises ConfigError for an unknown camera, and where nothing can render."""
        choose_gl()
        spec = scene_spec()
        for colour in COLOURS:
            add_cube(spec, Cube(name=colour, edge=_EDGE, mass=0.03, colour=colour))
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        self._cameras = tuple(cameras)
        self._renderers = [new_renderer(self._model, camera) for camera in cameras]
        self._alone = alone
        self._randomize = randomize
        self._address = {colour: int(self._model.joint(colour).qposadr[0]) for colour in COLOURS}
        self._geoms = np.array([self._model.geom(colour).id for colour in COLOURS])
        self._table = self._model.material("table").id
        self._plain = {
            name: getattr(self._model, name).copy()
            for name in ("geom_rgba", "mat_rgba", "light_dir", "light_diffuse", "cam_pos", "cam_quat")
        }

    def sample(self, rng: np.random.Generator) -> Scene:
        """One scene, with at least the named cube in it."""
        while True:
            colours = self._choose_colours(rng)
            places = _places(rng, len(colours))
            yaws = rng.uniform(-np.pi / 4, np.pi / 4, size=len(colours))
            heights = np.full(len(colours), _EDGE / 2)
            tip, finger_line, gripper, raised = _gripper(rng, places, yaws[0])
            heights[0] += raised
            arm = kinematics.reach_down(tip, finger_line)
            if arm is not None:
                break
        arm = arm + rng.normal(0.0, 0.02, size=7)
        self._place(arm, gripper, colours, np.column_stack([places, heights]), yaws)
        if self._randomize:
            self._vary(rng)
        place_for_drawing(self._model, self._data)
        position = np.array([*places[0], heights[0]])
        return Scene(
            images=self._draw(),
            state=np.append(arm, gripper).astype(np.float32),
            named=colours[0],
            position=position.astype(np.float32),
            from_tip=(position - kinematics.tip(arm)).astype(np.float32),
            yaw=float(yaws[0]),
            others=places[1:].astype(np.float32),
            pixels={camera.name: self._project(position, camera) for camera in self._cameras},
        )

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers:
            renderer.close()

    def _choose_colours(self, rng: np.random.Generator) -> list[str]:
        """The named colour first."""
        count = 1 if rng.random() < self._alone else int(rng.integers(2, len(COLOURS) + 1))
        return [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:count]]

    def _place(
        self, arm: np.ndarray, gripper: float, colours: list[str], positions: np.ndarray, yaws: np.ndarray
    ) -> None:
        qpos = self._data.qpos
        qpos[:7] = arm
        qpos[7:9] = gripper
        for address in self._address.values():
            qpos[address : address + 7] = (*_AWAY, 1.0, 0.0, 0.0, 0.0)
        for colour, position, yaw in zip(colours, positions, yaws, strict=True):
            address = self._address[colour]
            qpos[address : address + 7] = (*position, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))

    def _vary(self, rng: np.random.Generator) -> None:
        """Light and colours by some tenths, the cameras by some millimetres and tenths of a degree."""
        model, plain = self._model, self._plain
        cubes = plain["geom_rgba"][self._geoms, :3]
        shade = rng.uniform(0.8, 1.2, size=(len(cubes), 1)) * cubes + rng.normal(0.0, 0.03, size=cubes.shape)
        model.geom_rgba[self._geoms, :3] = np.clip(shade, 0.0, 1.0)
        table = plain["mat_rgba"][self._table, :3]
        model.mat_rgba[self._table, :3] = np.clip(
            table * rng.uniform(0.75, 1.2) + rng.normal(0.0, 0.03, size=3), 0.0, 1.0
        )
        model.light_dir[:] = plain["light_dir"] + rng.normal(0.0, 0.15, size=plain["light_dir"].shape)
        model.light_diffuse[:] = plain["light_diffuse"] * rng.uniform(0.8, 1.2)
        model.cam_pos[:] = plain["cam_pos"] + rng.normal(0.0, 0.002, size=plain["cam_pos"].shape)
        model.cam_quat[:] = plain["cam_quat"] + rng.normal(0.0, 0.002, size=plain["cam_quat"].shape)
        model.cam_quat[:] /= np.linalg.norm(model.cam_quat, axis=1, keepdims=True)

    def _project(self, point: np.ndarray, camera: CameraView) -> np.ndarray:
        """Where a point [3] m of base_link is in the camera's image, see ``Scene``."""
        number = self._model.camera(camera.name).id
        rotation = self._data.cam_xmat[number].reshape(3, 3)
        right, up, backward = rotation.T @ (point - self._data.cam_xpos[number])
        if backward >= 0:
            return np.full(2, np.nan)
        half_height = -backward * np.tan(np.radians(self._model.cam_fovy[number]) / 2)
        half_width = half_height * camera.width / camera.height
        return np.array([0.5 + 0.5 * right / half_width, 0.5 - 0.5 * up / half_height])

    def _draw(self) -> dict[str, np.ndarray]:
        images: dict[str, np.ndarray] = {}
        for camera, renderer in zip(self._cameras, self._renderers, strict=True):
            renderer.update_scene(self._data, camera.name)
            images[camera.name] = renderer.render()
        return images


def _places(rng: np.random.Generator, count: int) -> np.ndarray:
    """float64 [count, 2] m, no two closer than ``_APART``."""
    places: list[np.ndarray] = []
    while len(places) < count:
        place = rng.uniform(_TABLE_LOW, _TABLE_HIGH)
        if all(np.hypot(*(place - other)) >= _APART for other in places):
            places.append(place)
    return np.array(places)


def _gripper(rng: np.random.Generator, places: np.ndarray, yaw: float) -> tuple[np.ndarray, float, float, float]:
    """Finger tips [3] m, finger line rad, opening rad, and how far the named cube is raised, m.

    A fifth of the scenes has the named cube between the fingers, a third has the gripper near some cube.
    """
    draw = rng.random()
    if draw < 0.2:
        raised = float(rng.uniform(0.0, 0.11)) if rng.random() < 0.5 else 0.0
        tip = np.array([*places[0], _EDGE / 2 + raised]) + rng.normal(0.0, 0.004, size=3)
        opening = rng.uniform(0.15, 0.25) if raised > 0 else rng.uniform(0.2, 0.65)
        return tip, yaw + float(rng.normal(0.0, 0.05)), float(opening), raised
    finger_line = float(rng.uniform(-0.8, 0.8))
    opening = float(rng.uniform(0.05, 0.8))
    if draw < 0.55:
        place = places[rng.integers(len(places))] + rng.normal(0.0, 0.02, size=2)
        return np.array([*place, rng.uniform(0.015, 0.12)]), finger_line, opening, 0.0
    return rng.uniform(_TIP_LOW, _TIP_HIGH), finger_line, opening, 0.0
