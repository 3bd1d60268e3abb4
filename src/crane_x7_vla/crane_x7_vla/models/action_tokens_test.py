"""Action tokens are those of the reference, its folding of the last one included."""

from __future__ import annotations

import numpy as np
import torch

from crane_x7_vla.models.action_tokens import BinnedTokens, TokenBins, VQTokens
from crane_x7_vla.models.vq_test import GOLDEN, golden_vq

BINS = TokenBins(end=32000)
AFTER_ACTIONS = 151921  # len(tokenizer) of Qwen2.5 with 256 more tokens


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
    bins = TokenBins(end=AFTER_ACTIONS)
    assert bins.rows == range(151665, 151921)
    assert bins.ids(torch.tensor([-1.0, 1.0])).tolist() == [151920, 151665]


def test_a_chunk_is_a_token_for_each_group_counted_down_from_the_last() -> None:
    tokens = VQTokens(golden_vq(), end=AFTER_ACTIONS)
    ids = tokens.ids(torch.from_numpy(GOLDEN["actions"]))
    assert np.array_equal(ids.numpy(), 151920 - GOLDEN["codes"])
    assert (tokens.count, tokens.rows) == (7, range(AFTER_ACTIONS - 32, AFTER_ACTIONS))
    torch.testing.assert_close(tokens.values(ids), torch.from_numpy(GOLDEN["reconstruction"]), rtol=1e-4, atol=1e-4)


def test_certain_tokens_mixed_are_their_chunk() -> None:
    tokens = VQTokens(golden_vq(), end=AFTER_ACTIONS)
    ids = torch.from_numpy(151920 - GOLDEN["codes"])
    certain = torch.nn.functional.one_hot(ids - tokens.rows.start, len(tokens.rows)).float()
    torch.testing.assert_close(tokens.mean(certain), tokens.values(ids))
    half = 0.5 * (certain + certain.roll(1, dims=0))
    assert float((tokens.mean(half) - tokens.values(ids)).abs().max()) > 0.1


def test_codes_are_the_same_in_half_precision_around_them() -> None:
    tokens = VQTokens(golden_vq(), end=AFTER_ACTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        ids = tokens.ids(torch.from_numpy(GOLDEN["actions"]))
        values = tokens.values(ids)
    assert np.array_equal(ids.numpy(), 151920 - GOLDEN["codes"])
    assert values.dtype == torch.float32


def test_one_action_is_a_token_for_each_joint() -> None:
    tokens = BinnedTokens(TokenBins(end=AFTER_ACTIONS), action_dim=3)
    actions = torch.tensor([[[-1.0, 0.001, 1.0]]])
    assert tokens.ids(actions).tolist() == [[151920, 151793, 151665]]
    assert (tokens.count, tokens.rows.start) == (3, 151665)
    values = tokens.values(tokens.ids(actions))
    assert float((values - actions).abs().max()) < 2 / 255
    certain = torch.nn.functional.one_hot(tokens.ids(actions) - tokens.rows.start, 256).float()
    torch.testing.assert_close(tokens.mean(certain), values)
