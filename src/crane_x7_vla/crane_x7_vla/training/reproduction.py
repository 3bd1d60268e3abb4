"""What a model does with given frames on the path that training takes: data set, encoding, loss. Not augmented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from crane_x7_vla.backends.base import Backend
from crane_x7_vla.data.dataset import TrainingSample
from crane_x7_vla.training.evaluation import to_device
from crane_x7_vla.training.preflight import autocast


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingErrors:
    """metrics: loss and what the backend measures beside it, means over the frames. action_l1_rad: of the decoded
    targets against the recorded ones."""

    metrics: Mapping[str, float]
    action_l1_rad: float


def training_errors(
    backend: Backend, model: nn.Module, samples: Sequence[TrainingSample], *, device: torch.device, batch_size: int
) -> TrainingErrors:
    """Errors over ``samples`` in evaluation mode; on a CPU in float32, as policies run there, ``model`` stays in it."""
    model = (model if device.type == "cuda" else model.float()).to(device).eval()
    precision = replace(backend.config.training, mixed_precision="no") if device.type == "cpu" else None
    totals: dict[str, float] = {}
    decoded: list[np.ndarray] = []
    with torch.inference_mode():
        for start in range(0, len(samples), batch_size):
            part = samples[start : start + batch_size]
            encoded = [backend.processor.encode(s.observation, s.actions, is_pad=s.is_pad) for s in part]
            batch = to_device(backend.processor.collate(encoded), device)
            with autocast(precision or backend.config.training, device):
                loss = backend.loss(model, batch)
                prediction = backend.predict(model, batch)
            for name, value in {"loss": loss.value, **loss.metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(part)
            decoded.append(backend.processor.decode(prediction, [at_the_state(s).observation for s in part]))
    return TrainingErrors(
        metrics={name: total / len(samples) for name, total in totals.items()},
        action_l1_rad=mean_error(np.concatenate(decoded), samples),
    )


def at_the_state(sample: TrainingSample) -> TrainingSample:
    """With its measured state as the target in force: labels are relative to that, whatever an arm would be told."""
    return replace(sample, observation=replace(sample.observation, commanded=sample.observation.state))


def mean_error(actions: np.ndarray, samples: Sequence[TrainingSample]) -> float:
    """Mean absolute difference in rad of chunks [b, T, A] from the recorded ones, padding left out."""
    recorded, keep = np.stack([s.actions for s in samples]), ~np.stack([s.is_pad for s in samples])
    return float(np.abs(actions.astype(np.float64) - recorded)[keep].mean())
