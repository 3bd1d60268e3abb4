"""The CRANE-X7 on a table in MuJoCo."""

from __future__ import annotations

import logging
import os
from importlib.resources import files

import mujoco
import numpy as np

from crane_x7_vla.errors import ConfigError
from crane_x7_vla.types import Observation
from lift.interface import CameraView, Simulator, SimulatorSpec, StepResult
from lift.rendering import INSTALL_HINT
from lift.tasks.judge import Judge
from lift.tasks.pick_up import COLOURS, Cube, Task

logger = logging.getLogger(__name__)

# Targets are interpolated in pieces of this many physics steps: 10 ms, fine against the servos' response.
_PIECE = 5
# Physics steps that let the arm and the object come to rest at a reset.
_SETTLE = 150
# What MuJoCo warns of when the physics has diverged; it then starts from its own initial state without another word.
_DIVERGED = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
_NOISE_MEMORY = 0.7
# Least distance between where the object is and where it is drawn, m.
_ELSEWHERE = 0.05


def scene_spec() -> mujoco.MjSpec:
    """Arm, table and cameras, without objects.

    What MuJoCo warns of is logged from now on; by itself it writes MUJOCO_LOG.TXT into the working directory.
    """
    mujoco.set_mju_user_warning(_log_warning)
    return mujoco.MjSpec.from_file(str(files("lift") / "assets" / "table.xml"))


def _log_warning(text: str) -> None:
    logger.warning("%s", " ".join(text.split()))


def add_cube(spec: mujoco.MjSpec, cube: Cube) -> None:
    """A free cube; its joint and geom have its name."""
    half = cube.edge / 2
    body = spec.worldbody.add_body(name=cube.name, pos=[0.24, 0, half])
    body.add_freejoint(name=cube.name)
    body.add_geom(
        name=cube.name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[half] * 3,
        mass=cube.mass,
        rgba=[*COLOURS[cube.colour], 1],
        friction=[0.6, 0.01, 0.0001],
    )


class MujocoSimulator(Simulator):
    """N copies of the arm's state over one model; rendering in the thread that made the simulator."""

    def __init__(
        self,
        task: Task,
        *,
        num_envs: int,
        control_hz: float,
        cameras: tuple[CameraView, ...],
        max_steps: int,
        disturbance: float,
        draw_elsewhere: bool,
    ) -> None:
        """See ``make_env``; the settings have been checked there, but for what only this simulator knows."""
        spec = scene_spec()
        add_cube(spec, task.cube)
        self._model = spec.compile()
        self._pieces = _pieces(control_hz, self._model.opt.timestep)
        self._task = task
        robot = task.robot
        self.spec = SimulatorSpec(
            env_id=task.env_id,
            robot=robot,
            cameras=cameras,
            num_envs=num_envs,
            control_hz=control_hz,
            max_steps=max_steps,
            instruction=task.instruction,
            task_state_names=task.task_state_names,
        )
        self._joints = np.array([self._model.joint(name).qposadr[0] for name in robot.joint_names])
        self._velocities = np.array([self._model.joint(name).dofadr[0] for name in robot.joint_names])
        self._second_finger = self._model.joint("crane_x7_gripper_finger_b_joint").qposadr[0]
        self._cube = self._model.joint(task.cube.name).qposadr[0]
        self._judge = Judge(task, num_envs=num_envs, control_hz=control_hz, max_steps=max_steps)
        self._disturbance = disturbance
        self._draw_elsewhere = draw_elsewhere
        self._data = [mujoco.MjData(self._model) for _ in range(num_envs)]
        self._drawn = mujoco.MjData(self._model)
        self._target = np.zeros((num_envs, robot.size))
        self._noise = np.zeros((num_envs, robot.size))
        self._offset = np.zeros((num_envs, 2))
        self._rngs = [np.random.default_rng(0) for _ in range(num_envs)]
        self._observations: list[Observation | None] = [None] * num_envs
        self._closed = False
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        try:
            for camera in cameras:
                _check_camera(self._model, camera)
                if _size(camera) not in self._renderers:
                    self._renderers[_size(camera)] = new_renderer(self._model, camera)
        except ConfigError:
            self.close()
            raise

    def reset(self, seeds: np.ndarray, mask: np.ndarray | None = None) -> list[Observation]:
        """See ``Simulator.reset``."""
        seeds = np.asarray(seeds)
        chosen = np.ones(self.spec.num_envs, dtype=bool) if mask is None else np.asarray(mask)
        if seeds.shape != (self.spec.num_envs,) or seeds.dtype != np.int64:
            raise ValueError(f"seeds must be int64 [{self.spec.num_envs}], got {seeds.dtype} {list(seeds.shape)}")
        if chosen.shape != (self.spec.num_envs,) or chosen.dtype != np.bool_:
            raise ValueError(f"mask must be bool [{self.spec.num_envs}], got {chosen.dtype} {list(chosen.shape)}")
        if (seeds[chosen] < 0).any():
            raise ValueError(f"seeds must be 0 or more, got {seeds[chosen].min()}")
        unknown = [env for env in np.flatnonzero(~chosen).tolist() if self._observations[env] is None]
        if unknown:
            raise ValueError(f"environments {unknown} were never reset; the first reset must be of all")
        self._check_open()
        for env in np.flatnonzero(chosen):
            self._reset(int(env), int(seeds[env]))
        return self._all_observations()

    def _reset(self, env: int, seed: int) -> None:
        data, task = self._data[env], self._task
        start = task.sample_start(np.random.default_rng([seed, 0]))
        mujoco.mj_resetData(self._model, data)
        data.qpos[self._joints] = start.joints
        data.qpos[self._second_finger] = start.joints[task.robot.gripper_index]
        data.qpos[self._cube : self._cube + 7] = [
            *start.position,
            np.cos(start.yaw / 2),
            0.0,
            0.0,
            np.sin(start.yaw / 2),
        ]
        mujoco.mj_forward(self._model, data)
        # The controller starts by holding a target that carries the arm's weight where it stands.
        sag = data.qfrc_bias[self._velocities] / self._model.actuator_gainprm[:, 0]
        self._target[env] = task.robot.clamp(start.joints + sag)
        data.ctrl[:] = self._target[env]
        mujoco.mj_step(self._model, data, _SETTLE)
        self._rngs[env] = np.random.default_rng([seed, 1])
        self._noise[env] = 0.0
        self._offset[env] = self._elsewhere(seed, start.position) if self._draw_elsewhere else 0.0
        self._check_physics(env)
        self._judge.begin(env, self.task_state[env])
        self._observations[env] = self._observe(env)

    def _elsewhere(self, seed: int, position: np.ndarray) -> np.ndarray:
        """Offset [2] m from where the object is to where it is drawn."""
        rng = np.random.default_rng([seed, 2])
        while True:
            offset = self._task.sample_position(rng)[:2] - position[:2]
            if np.hypot(*offset) >= _ELSEWHERE:
                return offset

    def step(self, actions: np.ndarray) -> StepResult:
        """See ``Simulator.step``."""
        actions = np.asarray(actions)
        expected = (self.spec.num_envs, self.spec.robot.size)
        if actions.shape != expected or actions.dtype != np.float32:
            raise ValueError(f"actions must be float32 {list(expected)}, got {actions.dtype} {list(actions.shape)}")
        if not np.isfinite(actions).all():
            raise ValueError("actions hold a value that is not finite")
        if any(observation is None for observation in self._observations):
            raise ValueError("step before reset; reset every environment once")
        self._check_open()
        targets = self.spec.robot.clamp(actions).astype(np.float64)
        for env in range(self.spec.num_envs):
            self._advance(env, targets[env])
            self._check_physics(env)
        task_state = self.task_state
        outcome = self._judge.judge(task_state)
        for env in range(self.spec.num_envs):
            self._observations[env] = self._observe(env)
        return StepResult(
            observations=self._all_observations(),
            reward=outcome.success.astype(np.float32),
            terminated=outcome.terminated,
            truncated=outcome.truncated,
            success=outcome.success,
            task_state=task_state,
        )

    def _advance(self, env: int, target: np.ndarray) -> None:
        """One control period: the executed target goes in a line from the old one to the new one."""
        data, old_noise = self._data[env], self._noise[env].copy()
        if self._disturbance > 0:
            fresh = self._rngs[env].normal(0.0, self._disturbance, size=target.size)
            noise = _NOISE_MEMORY * old_noise + np.sqrt(1 - _NOISE_MEMORY**2) * fresh
            noise[self.spec.robot.gripper_index] = 0.0
            self._noise[env] = noise
        begin, end = self._target[env] + old_noise, target + self._noise[env]
        for piece in range(1, self._pieces + 1):
            share = piece / self._pieces
            data.ctrl[:] = (1 - share) * begin + share * end
            mujoco.mj_step(self._model, data, _PIECE)
        self._target[env] = target

    @property
    def task_state(self) -> np.ndarray:
        """See ``Simulator.task_state``."""
        return np.stack([data.qpos[self._cube : self._cube + 7] for data in self._data]).astype(np.float32)

    def _all_observations(self) -> list[Observation]:
        return [observation for observation in self._observations if observation is not None]

    def _observe(self, env: int) -> Observation:
        data = self._data[env]
        return Observation(
            images=self._render(env),
            state=data.qpos[self._joints].astype(np.float32),
            commanded=self._target[env].astype(np.float32),
            instruction=self.spec.instruction,
            stamp=float(self._judge.steps[env]) / self.spec.control_hz,
        )

    def _render(self, env: int) -> dict[str, np.ndarray]:
        if not self.spec.cameras:
            return {}
        # Drawing from a second state leaves the physics bit by bit as it would be without cameras.
        self._drawn.qpos[:] = self._data[env].qpos
        self._drawn.qpos[self._cube : self._cube + 2] += self._offset[env]
        place_for_drawing(self._model, self._drawn)
        return {camera.name: self._draw(camera) for camera in self.spec.cameras}

    def _draw(self, camera: CameraView) -> np.ndarray:
        renderer = self._renderers[_size(camera)]
        renderer.update_scene(self._drawn, camera.name)
        return renderer.render()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the simulator is closed")

    def _check_physics(self, env: int) -> None:
        data = self._data[env]
        if any(data.warning[kind].number for kind in _DIVERGED):
            raise FloatingPointError(f"the physics of environment {env} diverged at {data.time:.3f} s")

    def close(self) -> None:
        """See ``Simulator.close``."""
        self._closed = True
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


def _pieces(control_hz: float, timestep: float) -> int:
    """Pieces of a control period; raises ConfigError where they do not fill it."""
    piece = _PIECE * timestep
    pieces = round(1.0 / control_hz / piece)
    if abs(pieces * piece - 1.0 / control_hz) > 1e-9:
        raise ConfigError(
            f"control_hz is {control_hz:g}, but a control period must be a whole number of {1000 * piece:g} ms; "
            "expected for example 5, 10, 20, 25, 50 or 100"
        )
    return pieces


def _size(camera: CameraView) -> tuple[int, int]:
    return camera.height, camera.width


def place_for_drawing(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Positions of bodies, cameras and lights from joint positions; no dynamics."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)


def new_renderer(model: mujoco.MjModel, camera: CameraView) -> mujoco.Renderer:
    """A renderer of the camera's size.

    Raises ConfigError when the scene has no such camera, the image is too large, or OpenGL does not start.
    """
    _check_camera(model, camera)
    try:
        return mujoco.Renderer(model, height=camera.height, width=camera.width)
    except (mujoco.FatalError, ImportError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ConfigError(
            f"OpenGL (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}) does not start: {reason}. Install Mesa's software "
            f"renderer with: {INSTALL_HINT}, then set MUJOCO_GL=osmesa"
        ) from error


def _check_camera(model: mujoco.MjModel, camera: CameraView) -> None:
    names = [model.camera(i).name for i in range(model.ncam)]
    if camera.name not in names:
        raise ConfigError(f"unknown camera '{camera.name}'; the scene has {', '.join(names)}")
    width, height = model.vis.global_.offwidth, model.vis.global_.offheight
    if not (1 <= camera.width <= width and 1 <= camera.height <= height):
        raise ConfigError(
            f"images of camera '{camera.name}' are to be {camera.width} x {camera.height} pixels; expected 1 x 1 to "
            f"{width} x {height}"
        )
