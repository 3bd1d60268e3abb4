"""What every simulator provides. Batch first, reset only when told to, and the arm's own units: rad and seconds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.types import Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraView:
    """One rendered camera: name as in ``Observation.images``, size in pixels."""

    name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSpec:
    """What a simulator simulates.

    control_hz: control periods per second; one ``step`` is one period.
    instruction: the task in words. max_steps: periods after which an episode is truncated.
    task_state_names: names of the K entries of ``task_state``.
    """

    env_id: str
    robot: RobotSpec
    cameras: tuple[CameraView, ...]
    num_envs: int
    control_hz: float
    max_steps: int
    instruction: str
    task_state_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one control period brought, for N environments.

    reward: float32 [N]. terminated: bool [N], the task ended by success or by a state it cannot be done from.
    truncated: bool [N], the step limit was reached. success: bool [N], by the simulator's predicate.
    task_state: float32 [N, K], object poses and the like, for experts, critics, success and state-only RL;
    no VLA backend may read it.
    """

    observations: list[Observation]
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    task_state: np.ndarray


class Simulator(ABC):
    """N environments of one task. Nothing resets by itself: after ``terminated`` or ``truncated`` call ``reset``."""

    spec: SimulatorSpec

    @abstractmethod
    def reset(self, seeds: np.ndarray, mask: np.ndarray | None = None) -> list[Observation]:
        """Start new episodes.

        seeds: int64 [N], 0 or more; the same seed gives the same start bit by bit. mask: bool [N], which environments
        to reset, all by default. Returns the N current observations, those that were not reset unchanged.
        Raises ValueError for wrong shapes and types, and unless the first reset is of all.
        """

    @abstractmethod
    def step(self, actions: np.ndarray) -> StepResult:
        """Advance one control period towards ``actions`` float32 [N, A], absolute joint targets in rad.

        Targets are interpolated linearly from those in force, as a trajectory controller does; beyond the joint limits
        they are held at them. Raises ValueError for a wrong shape or a value that is not finite, and before ``reset``.
        """

    @property
    @abstractmethod
    def task_state(self) -> np.ndarray:
        """float32 [N, K] now, also straight after ``reset``."""

    @abstractmethod
    def close(self) -> None:
        """Free the renderer; the simulator cannot be used afterwards."""
