"""What every VLA family provides: a processor (observation <-> tensors) and a backend (tensors -> loss or prediction).

Nothing here owns a loop, an optimiser, a device or a logger: the trainer, the policies and RL do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from crane_x7_vla.config.base import CameraConfig
from crane_x7_vla.types import Observation

Sample = dict[str, Tensor]
Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Loss:
    """value: scalar tensor with gradient. metrics: detached scalars by name, without the train/ or eval/ prefix;
    ``action_l1_rad`` is the mean absolute error of the decoded joint targets in rad, where the backend can say it."""

    value: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a policy must be given and gives, as far as the model decides it.

    cameras: in the model's order. action_horizon: rows predicted. n_action_steps: rows executed before the next
    prediction. history: how many of ``Observation.past`` it reads. action_form: relative or absolute joints inside it.
    """

    cameras: tuple[CameraConfig, ...]
    action_horizon: int
    n_action_steps: int
    history: int
    action_form: str


class Processor(Protocol):
    """The same code encodes an observation in training, in simulation, on the robot and in the policy server."""

    def encode(
        self,
        observation: Observation,
        actions: np.ndarray | None = None,
        *,
        is_pad: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
    ) -> Sample:
        """Tensors of one observation, unbatched.

        actions: float32 [T, A] rad, absolute; adds the labels. is_pad: bool [T], rows past the episode's end.
        rng: augments the images when given (training); without it the matching evaluation crop is used.
        Raises DataError for a missing camera or a state of the wrong size.
        """
        ...

    def encode_raw(self, observation: Observation) -> Sample:
        """Like ``encode`` for inference, but with the images as they came, uint8, for ``prepare`` to work on."""
        ...

    def collate(self, samples: Sequence[Sample], *, multiple: int = 1) -> Batch:
        """Stack samples, padding what is ragged. multiple: text is padded to a multiple of that many tokens."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """A collated batch of ``encode_raw`` with the images as ``encode`` gives them, made on the batch's device."""
        ...

    def decode(self, prediction: Tensor, observations: Sequence[Observation]) -> np.ndarray:
        """Model output [b, T, ...] -> float32 [b, T, A] absolute joint targets in rad.

        observations: those the prediction answers, so that a relative chunk stays anchored to its own state.
        """
        ...


class Backend(Protocol):
    """A VLA family. ``backend.processor`` belongs to it; ``config`` is its dataclass.

    base: directory of the weights that ``build`` starts from, None where it starts from random ones.
    """

    config: Any
    processor: Processor
    spec: ModelSpec
    base: Path | None

    def build(self) -> nn.Module:
        """The model with the weights that the config names, strictly loaded; random ones only if it names none."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Training objective of one collated batch that was encoded with actions."""
        ...

    def predict(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        running: Sequence[Any] | None = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Prediction for a collated batch, ready for ``processor.decode``."""
        ...

    def comparable(self, model: nn.Module, batch: Batch) -> Tensor:
        """Like ``predict``, but continuous in the weights, so that two models can be compared: tokens jump where the
        last bit of a weight changes. Ready for ``processor.decode``."""
        ...

    def for_inference(self, model: nn.Module) -> nn.Module:
        """``model`` made to run fast, predicting the same; from now on it can be neither trained nor saved."""
        ...

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write what ``restore`` needs into an existing directory: adapters and trained modules, or the whole model."""
        ...

    def restore(self, directory: Path) -> nn.Module:
        """The model that ``save`` wrote; raises CheckpointError naming missing, unexpected or misshapen keys."""
        ...

    def check_base(self, directory: Path) -> None:
        """Raise CheckpointError where what ``save`` wrote was trained on other weights than ``build`` has read."""
        ...
