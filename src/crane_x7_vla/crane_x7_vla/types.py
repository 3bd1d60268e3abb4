"""The values that travel between cameras, data, policies, simulators and the arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray


def _check(name: str, value: Any, dtype: type, ndim: int, expected: str) -> None:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} must be {expected}, got {type(value).__name__}")
    array = cast(NDArray[Any], value)
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(f"{name} must be {expected}, got a {array.dtype} array of shape {list(array.shape)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the robot sees and feels at one instant.

    images: {camera name: uint8 [H, W, 3] RGB}; empty only for policies that name no camera.
    state: float32 [S] measured joint positions in rad, in ``RobotSpec.joint_names`` order.
    instruction: the task in words, as the operator typed it.
    stamp: seconds, the source's clock (ROS time on the robot, simulated time in a simulator).
    commanded: float32 [S] rad, the joint target in force at ``stamp``, or None where nothing was commanded.
    past: earlier observations for policies with history; ``past[i]`` is the one nearest ``stamp - (i + 1) * dt``.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    stamp: float
    commanded: np.ndarray | None = None
    past: tuple[Observation, ...] = field(default=())

    def __post_init__(self) -> None:
        for camera, image in self.images.items():
            _check(f"image of camera '{camera}'", image, np.uint8, 3, "uint8 [H, W, 3] RGB")
            if image.shape[2] != 3:
                raise ValueError(f"image of camera '{camera}' must have 3 channels (RGB), got {image.shape[2]}")
        _check("state", self.state, np.float32, 1, "float32 [S]")
        if self.commanded is not None:
            _check("commanded", self.commanded, np.float32, 1, "float32 [S]")
            if self.commanded.shape != self.state.shape:
                raise ValueError(f"commanded has {self.commanded.size} joints, state has {self.state.size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionChunk:
    """Joint targets for the next ``T`` control periods.

    actions: float32 [T, A] absolute joint-position targets in rad, ``RobotSpec.joint_names`` order.
    dt: seconds between rows, 1 / control_hz of the data the policy was trained on.
    stamp: stamp of the observation the chunk answers; row k is due at ``stamp + (k + 1) * dt``.
    """

    actions: np.ndarray
    dt: float
    stamp: float

    def __post_init__(self) -> None:
        _check("actions", self.actions, np.float32, 2, "float32 [T, A]")
        if len(self.actions) == 0:
            raise ValueError("actions must have at least one row")
        if not self.dt > 0:
            raise ValueError(f"dt must be positive, got {self.dt}")

    def due(self, row: int) -> float:
        """Time at which ``row`` should be reached, in the clock of ``stamp``."""
        return self.stamp + (row + 1) * self.dt
