"""Normalisation, and relative against absolute joints."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from crane_x7_vla.data.statistics import NormStats, norm_stats
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.transforms.action import (
    Normalization,
    absolute_from,
    action_rows,
    normalize,
    relative_to,
    unnormalize,
    value_range,
)
from crane_x7_vla.transforms.state import normalize_state

RNG = np.random.default_rng(0)


@pytest.fixture
def stats() -> NormStats:
    return norm_stats(RNG.normal(size=(500, 8)).astype(np.float32))


@pytest.mark.parametrize("normalization", get_args(Normalization))
def test_unnormalizing_inverts_normalizing(stats: NormStats, normalization: Normalization) -> None:
    scale = value_range(stats, normalization, span_floor=0.04)
    values = RNG.normal(size=(5, 3, 8)).astype(np.float32)
    np.testing.assert_allclose(unnormalize(normalize(values, scale), scale), values, atol=1e-5)


def test_each_form_puts_its_statistics_at_minus_one_and_one(stats: NormStats) -> None:
    ends = {
        "bounds_q99": (stats.q01, stats.q99),
        "bounds": (stats.min, stats.max),
        "zscore": (stats.mean - stats.std, stats.mean + stats.std),
    }
    for name in get_args(Normalization):
        low, high = (normalize(end, value_range(stats, name, span_floor=0.04)) for end in ends[name])
        np.testing.assert_allclose(low, -1, atol=1e-5)
        np.testing.assert_allclose(high, 1, atol=1e-5)


def test_a_joint_at_rest_does_not_amplify_noise() -> None:
    rows = np.zeros((100, 8), np.float32)
    rows[:, 0] = RNG.normal(scale=1e-5, size=100)
    scale = value_range(norm_stats(rows), "bounds_q99", span_floor=0.04)
    assert np.abs(normalize(rows, scale)).max() < 0.01
    np.testing.assert_allclose(scale.high - scale.low, 0.04, atol=1e-6)


def test_masked_entries_stay_as_they_are(stats: NormStats) -> None:
    mask = np.ones(8, np.bool_)
    mask[7] = False
    stats = NormStats(**{name: getattr(stats, name) for name in NormStats.__slots__ if name != "mask"}, mask=mask)
    values = RNG.normal(size=(4, 8)).astype(np.float32)
    scaled = normalize(values, value_range(stats, "bounds_q99", span_floor=0.04))
    np.testing.assert_allclose(scaled[:, 7], values[:, 7], rtol=1e-6)
    assert np.abs(scaled[:, 0] - values[:, 0]).max() > 0.1


def test_relative_actions_leave_the_gripper_absolute_and_are_undone() -> None:
    actions, state = RNG.normal(size=(2, 4, 8)).astype(np.float32), RNG.normal(size=(2, 8)).astype(np.float32)
    offsets = relative_to(actions, state, CRANE_X7.gripper_index)
    np.testing.assert_array_equal(offsets[..., 7], actions[..., 7])
    np.testing.assert_allclose(offsets[1, 2, 0], actions[1, 2, 0] - state[1, 0], atol=1e-6)
    np.testing.assert_allclose(absolute_from(offsets, state, CRANE_X7.gripper_index), actions, atol=1e-6)


def test_relative_rows_are_offsets_from_the_state_of_their_own_observation() -> None:
    state = RNG.normal(size=(5, 8)).astype(np.float32)
    action = RNG.normal(size=(5, 8)).astype(np.float32)
    rows = action_rows(state, action, gripper_index=CRANE_X7.gripper_index, horizon=3, action_form="relative")
    expected = []
    for k in range(3):
        for t in range(5 - k):
            row = action[t + k] - state[t]
            row[7] = action[t + k][7]  # the gripper stays absolute
            expected.append(row)
    np.testing.assert_array_equal(rows, np.stack(expected))
    absolute = action_rows(state, action, gripper_index=CRANE_X7.gripper_index, horizon=3, action_form="absolute")
    np.testing.assert_array_equal(absolute, np.concatenate([action, action[1:], action[2:]]))


def test_rows_of_an_episode_shorter_than_the_chunk() -> None:
    one = np.ones((2, 8), dtype=np.float32)
    assert len(action_rows(one, one, gripper_index=CRANE_X7.gripper_index, horizon=8, action_form="relative")) == 3
    with pytest.raises(ValueError, match="expected relative or absolute"):
        action_rows(one, one, gripper_index=CRANE_X7.gripper_index, horizon=8, action_form="delta")


def test_a_state_outside_the_data_is_clipped_only_when_asked(stats: NormStats) -> None:
    scale, far = value_range(stats, "bounds_q99", span_floor=0.04), np.full(8, 9, np.float32)
    np.testing.assert_array_equal(normalize_state(far, scale, clip=True), 1)
    assert normalize_state(far, scale, clip=False).min() > 1


def test_other_sizes_are_an_error_that_names_both(stats: NormStats) -> None:
    scale = value_range(stats, "bounds", span_floor=0.04)
    with pytest.raises(ValueError, match="7 entries, the statistics 8"):
        normalize(np.zeros(7, np.float32), scale)
