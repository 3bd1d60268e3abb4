from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from crane_x7_vla.backends.base import Loss
from crane_x7_vla.training.distributed import World
from crane_x7_vla.training.evaluation import Evaluation, evaluate
from crane_x7_vla.training.loading import EvaluationBatch
from crane_x7_vla.types import Observation

HORIZON, JOINTS = 3, 8


class Guess:
    """A backend whose prediction is the commanded anchor plus an offset per joint and row; it draws random numbers."""

    def __init__(self, offset: np.ndarray) -> None:
        self.offset = offset
        self.processor: Any = self
        self.training_seen: list[bool] = []

    def loss(self, model: torch.nn.Module, batch: Any) -> Loss:
        self.training_seen.append(model.training)
        torch.rand(3)
        return Loss(batch["loss"].mean())

    def predict(self, model: torch.nn.Module, batch: Any, *, rng: torch.Generator) -> torch.Tensor:
        return torch.rand(1, generator=rng)

    def decode(self, prediction: torch.Tensor, observations: list[Observation]) -> np.ndarray:
        anchors = np.stack([seen.commanded for seen in observations if seen.commanded is not None])
        return (anchors[:, None] + self.offset).astype(np.float32)


def batch(rng: np.random.Generator, n: int, *, is_start: bool) -> EvaluationBatch:
    states = rng.normal(size=(n, JOINTS)).astype(np.float32)
    observations = [
        Observation(images={}, state=state, instruction="", stamp=0.0, commanded=state + np.float32(9))
        for state in states
    ]
    is_pad = np.zeros((n, HORIZON), dtype=bool)
    is_pad[-1, 1:] = True
    actions = np.repeat(states[:, None], HORIZON, axis=1) + np.float32(0.5)
    actions[is_pad] = 1000  # what is padded must not count
    return EvaluationBatch({"loss": torch.full((n,), float(n))}, observations, actions, is_pad, np.full(n, is_start))


def run(batches: list[EvaluationBatch], offset: np.ndarray) -> tuple[Evaluation, Guess]:
    backend: Any = Guess(offset)
    model = torch.nn.Dropout()
    model.train()
    result = evaluate(
        backend,
        model,
        batches,
        shape=(HORIZON, JOINTS),
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext,
        world=World(),
    )
    assert model.training
    return result, backend


def test_errors_are_of_decoded_targets_from_the_measured_state_without_padding() -> None:
    rng = np.random.default_rng(0)
    offset = np.full((HORIZON, JOINTS), 0.5)
    offset[1, 2] += 0.3
    offset[:, 7] -= 0.2
    result, backend = run([batch(rng, 3, is_start=True), batch(rng, 1, is_start=False)], offset)
    # Three steps and one, the last of each padded to a single row: 2 + 2 whole chunks' rows.
    rows = np.array([4, 2, 2])
    expected = np.zeros(JOINTS)
    expected[2] = 0.3 * rows[1] / rows.sum()
    expected[7] = 0.2
    np.testing.assert_allclose(result.by_joint, expected, atol=1e-5)
    np.testing.assert_allclose(result.by_row, [0.2 / 8, 0.5 / 8, 0.2 / 8], atol=1e-5)
    np.testing.assert_allclose(result.holding, 0.5, atol=1e-5)
    assert result.action_l1_rad == pytest.approx(expected.mean(), abs=1e-5)
    assert result.start_l1_rad == pytest.approx((0.2 * 7 + 0.3 * 2) / 8 / 7, abs=1e-5)
    assert result.n_steps == 4
    assert result.loss == pytest.approx((3 * 3 + 1 * 1) / 4)
    assert backend.training_seen == [False, False]


def test_evaluation_leaves_the_random_numbers_of_training_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    run([batch(np.random.default_rng(0), 2, is_start=False)], np.zeros((HORIZON, JOINTS)))
    assert torch.equal(torch.rand(4), expected)


def test_without_starts_their_error_is_unknown_and_without_steps_there_is_no_result() -> None:
    result, _ = run([batch(np.random.default_rng(0), 2, is_start=False)], np.zeros((HORIZON, JOINTS)))
    assert np.isnan(result.start_l1_rad)
    with pytest.raises(ValueError, match="no steps to evaluate"):
        run([], np.zeros((HORIZON, JOINTS)))
