"""From observations to chunks of joint targets, given nothing but a model directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from crane_x7_vla.backends.base import Backend, Batch
from crane_x7_vla.backends.device import chosen_device, torch_device
from crane_x7_vla.backends.restoring import restore_backend
from crane_x7_vla.config.base import CameraConfig, VLAConfig
from crane_x7_vla.errors import USER_ERRORS, CheckpointError
from crane_x7_vla.models.precision import autocast_type
from crane_x7_vla.policies.graph import StaticFunction
from crane_x7_vla.robot import RobotSpec, robot_spec
from crane_x7_vla.types import ActionChunk, Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """What a policy must be given and what it gives.

    cameras: the images every observation needs, with the topics they come from. action_horizon: rows of a chunk.
    n_action_steps: rows to execute before asking again. dt: seconds between rows. history: how many entries of
    ``Observation.past`` it reads. action_form, action_source: what it was trained on; chunks are absolute in any case.
    """

    robot: RobotSpec
    cameras: tuple[CameraConfig, ...]
    action_horizon: int
    n_action_steps: int
    dt: float
    history: int
    action_form: str
    action_source: str
    backend: str


class Policy(Protocol):
    """A policy, in this process or on another machine."""

    spec: PolicySpec

    def infer(
        self,
        observations: Sequence[Observation],
        *,
        running: Sequence[Any] | None = None,
        rng: torch.Generator | None = None,
    ) -> list[ActionChunk]:
        """One chunk per observation; several are one batch. running: what is being executed, for policies that blend.

        Raises DataError for an observation that lacks what ``spec`` names, FloatingPointError where the model's output
        is not finite. The caller holds the arm then.
        """
        ...


class LocalPolicy:
    """A backend and its model on a device of this machine: on a GPU in the precision it was trained with, on a CPU
    in float32, four bytes for each weight. ``model`` is consumed.

    graph: everything from the cameras' images to the model's answer runs on the device, on a GPU as one CUDA graph for
    each number of observations and tokens; the first call with a new one takes seconds. For backends whose prediction
    depends on the observations alone: ``running`` and ``rng`` do not reach them then. prompt_multiple: with ``graph``,
    prompts are padded to a multiple of that many tokens; fewer graphs, but each has masks to heed.
    """

    def __init__(
        self,
        backend: Backend,
        model: nn.Module,
        *,
        device: str = "cpu",
        graph: bool = False,
        prompt_multiple: int = 1,
    ) -> None:
        config: VLAConfig = backend.config
        self._device = torch_device(device)
        self._backend = backend
        # On a CPU float32 is as fast as anything. Half precision throughout is what the published code runs, too.
        precision = config.training.mixed_precision if self._device.type == "cuda" else "no"
        dtype = autocast_type(precision) or torch.float32
        self._model = backend.for_inference(model.to(dtype)).to(self._device).eval()
        self._prompt_multiple = prompt_multiple
        capture = self._device.type == "cuda"
        self._static = StaticFunction(self._predict_raw, device=self._device, capture=capture) if graph else None
        self.spec = PolicySpec(
            robot=robot_spec(config.robot),
            cameras=backend.spec.cameras,
            action_horizon=backend.spec.action_horizon,
            n_action_steps=backend.spec.n_action_steps,
            dt=1.0 / config.data.control_hz,
            history=backend.spec.history,
            action_form=backend.spec.action_form,
            action_source=config.data.action_source,
            backend=config.backend,
        )

    def infer(
        self,
        observations: Sequence[Observation],
        *,
        running: Sequence[Any] | None = None,
        rng: torch.Generator | None = None,
    ) -> list[ActionChunk]:
        """See ``Policy.infer``."""
        if not observations:
            return []
        processor = self._backend.processor
        if self._static is None:
            batch = processor.collate([processor.encode(observation) for observation in observations])
            batch = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
            prediction = self._predict(batch, running=running, rng=rng)
        else:
            samples = [processor.encode_raw(observation) for observation in observations]
            prediction = self._static(processor.collate(samples, multiple=self._prompt_multiple))
        actions = processor.decode(prediction, observations)
        self._check_finite(actions)
        return [
            ActionChunk(actions=chunk, dt=self.spec.dt, stamp=observation.stamp)
            for chunk, observation in zip(actions, observations, strict=True)
        ]

    def _predict(
        self, batch: Batch, *, running: Sequence[Any] | None = None, rng: torch.Generator | None = None
    ) -> Tensor:
        with torch.inference_mode():
            return self._backend.predict(self._model, batch, running=running, rng=rng)

    @torch.inference_mode()
    def _predict_raw(self, batch: Batch) -> Tensor:
        return self._predict(self._backend.processor.prepare(batch))

    def _check_finite(self, actions: np.ndarray) -> None:
        wrong = np.asarray(~np.isfinite(actions).all(axis=(0, 1)))
        if wrong.any():
            joints = [name for name, bad in zip(self.spec.robot.joint_names, wrong, strict=True) if bad]
            raise FloatingPointError(f"the policy predicted NaN or infinity for {', '.join(joints)}")


def load_policy(directory: Path, *, device: str = "cpu", graph: bool = False) -> LocalPolicy:
    """The policy of a merged model directory, or of a checkpoint-N with adapters on its base model.

    device: cpu, cuda, cuda:N, or auto for a GPU where there is one. graph: see ``LocalPolicy``.
    Raises CheckpointError "Failed to load VLA model: …" that names what is missing and what to type.
    """
    try:
        device = chosen_device(device)
        torch_device(device)  # before minutes of loading
        backend, model = restore_backend(Path(directory))
        return LocalPolicy(backend, model, device=device, graph=graph)
    except USER_ERRORS as error:
        raise CheckpointError(f"Failed to load VLA model: {error}") from error
