"""Action tokens are those of the reference, its folding of the last one included."""

from __future__ import annotations

import numpy as np
import torch

from crane_x7_vla.models.action_tokens import TokenBins

BINS = TokenBins(end=32000)


def test_ids_are_those_of_numpys_digitize() -> None:
    edges = np.linspace(-1, 1, 256)
    values = np.concatenate([edges, np.random.default_rng(0).uniform(-1.2, 1.2, 5000)])
    expected = 32000 - np.digitize(np.clip(values, -1, 1), edges)
    assert BINS.ids(torch.from_numpy(values)).tolist() == expected.tolist()
    assert set(expected.tolist()) == set(BINS.rows)


def test_values_are_within_half_a_bin_and_the_last_token_is_read_like_its_neighbour() -> None:
    values = torch.linspace(-1, 1, 4001)
    assert float((BINS.values(BINS.ids(values)) - values).abs().max()) <= 1 / 255 + 1e-6
    assert BINS.ids(torch.tensor([1.0, 0.999, -1.0])).tolist() == [31744, 31745, 31999]
    assert BINS.values(torch.tensor(31744)) == BINS.values(torch.tensor(31745))


def test_values_are_the_middles_of_numpys_bins() -> None:
    edges = np.linspace(-1, 1, 256)
    middles = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)
    np.testing.assert_array_equal(BINS.values(31999 - torch.arange(255)).numpy(), middles)


def test_other_tokens_are_read_like_the_nearest_action_token() -> None:
    low, high = BINS.values(torch.tensor([5, 32063])).tolist()
    assert low == float(BINS.values(torch.tensor(31744)))
    assert high == float(BINS.values(torch.tensor(31999)))


def test_minivla_counts_down_from_the_end_of_its_extra_tokens() -> None:
    bins = TokenBins(end=151921)
    assert bins.rows == range(151665, 151921)
    assert bins.ids(torch.tensor([-1.0, 1.0])).tolist() == [151920, 151665]
