"""How far predictions are from recorded actions, measured as the arm would execute them: decoded, in rad."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from crane_x7_vla.backends.base import Backend, Batch
from crane_x7_vla.training.distributed import World, sums
from crane_x7_vla.training.loading import EvaluationBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Mean absolute errors of decoded targets, padding left out, and the loss.

    by_joint: float64 [A] rad. by_row: float64 [T] rad, NaN for a row that every chunk pads. holding: float64 [A] rad,
    the error of an arm that stays where it is. start_l1_rad: over the steps at the start of episodes, NaN without any;
    a policy that does not look shows there first. n_steps: evaluated.
    """

    loss: float
    by_joint: np.ndarray
    by_row: np.ndarray
    holding: np.ndarray
    start_l1_rad: float
    n_steps: int

    @property
    def action_l1_rad(self) -> float:
        """Mean over steps, rows and joints."""
        return float(self.by_joint.mean())


def evaluate(
    backend: Backend,
    model: nn.Module,
    batches: Iterable[EvaluationBatch],
    *,
    shape: tuple[int, int],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    world: World,
) -> Evaluation:
    """Errors of ``model`` in evaluation mode over the batches of all processes; its mode and the random state survive.

    shape: (T, A) of a chunk. autocast: makes the context of a forward pass.
    """
    was_training = model.training
    model.eval()
    totals = _Totals(*shape)
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.inference_mode():
        torch.manual_seed(0)
        rng = torch.Generator(device=device).manual_seed(0)
        for item in batches:
            batch = to_device(item.batch, device)
            with autocast():
                loss = backend.loss(model, batch)
                prediction = backend.predict(model, batch, rng=rng)
            # Labels are relative to the state, whatever is in force when an arm executes them.
            anchored = [replace(seen, commanded=seen.state) for seen in item.observations]
            totals.add(item, float(loss.value), backend.processor.decode(prediction, anchored))
    model.train(was_training)
    return totals.result(world, device)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on ``device``."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


class _Totals:
    """Sums that may be added up over processes."""

    def __init__(self, horizon: int, joints: int) -> None:
        self._error = np.zeros((horizon, joints))
        self._holding = np.zeros((horizon, joints))
        self._rows = np.zeros(horizon)
        self._start_error = self._start_rows = self._loss = self._steps = 0.0

    def add(self, item: EvaluationBatch, loss: float, decoded: np.ndarray) -> None:
        keep = ~item.is_pad
        states = np.stack([seen.state for seen in item.observations]).astype(np.float64)
        error = np.where(keep[..., None], np.abs(decoded.astype(np.float64) - item.actions), 0)
        self._error += error.sum(axis=0)
        self._holding += np.where(keep[..., None], np.abs(states[:, None] - item.actions), 0).sum(axis=0)
        self._rows += keep.sum(axis=0)
        self._start_error += float(error[item.is_start].mean(axis=-1).sum())
        self._start_rows += float(keep[item.is_start].sum())
        self._loss += loss * len(states)
        self._steps += len(states)

    def result(self, world: World, device: torch.device) -> Evaluation:
        flat = [*self._error.ravel(), *self._holding.ravel(), *self._rows]
        flat += [self._start_error, self._start_rows, self._loss, self._steps]
        total = np.array(sums(flat, world, device))
        n = self._error.size
        error, holding = (total[i * n : (i + 1) * n].reshape(self._error.shape) for i in (0, 1))
        rows, (start_error, start_rows, loss, steps) = total[2 * n : -4], total[-4:]
        if not steps:
            raise ValueError("no steps to evaluate")
        with np.errstate(invalid="ignore"):
            by_row = error.mean(axis=1) / rows
        return Evaluation(
            loss=float(loss / steps),
            by_joint=error.sum(axis=0) / rows.sum(),
            by_row=by_row,
            holding=holding.sum(axis=0) / rows.sum(),
            start_l1_rad=float(start_error / start_rows) if start_rows else float("nan"),
            n_steps=int(steps),
        )
