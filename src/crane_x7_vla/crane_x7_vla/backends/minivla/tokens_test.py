from __future__ import annotations

import numpy as np
import torch

from crane_x7_vla.backends.minivla.tokens import BinnedTokens, VQTokens
from crane_x7_vla.models.action_tokens import TokenBins
from crane_x7_vla.models.vq_test import GOLDEN, golden_vq

AFTER_ACTIONS = 151921  # len(tokenizer) of Qwen2.5 with 256 more tokens


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
