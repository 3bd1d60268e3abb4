"""Decoding over the cache writes what the whole sequence, read anew for each token, says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crane_x7_vla.models.decoder import CausalLM, DecoderConfig
from crane_x7_vla.models.decoding import greedy_tokens

torch.set_num_threads(1)
COUNT = 6
ROWS = range(30, 46)
CONFIGS = {
    "llama": DecoderConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    ),
    "qwen2": DecoderConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=1e6,
        qkv_bias=True,
        tied_embeddings=True,
    ),
}


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> CausalLM:
    torch.manual_seed(1)
    model = CausalLM(CONFIGS[request.param]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def read_anew(model: CausalLM, ids: Tensor, rows: range | None) -> Tensor:
    """Greedy tokens without a cache."""
    start = 0 if rows is None else rows.start
    prompt = ids.shape[1]
    with torch.inference_mode():
        for _ in range(COUNT):
            states = model.model(model.model.embed_tokens(ids), causal=True)
            ids = torch.cat([ids, model.logits(states, rows)[:, -1:].argmax(dim=2) + start], dim=1)
    return ids[:, prompt:]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rows", [None, ROWS])
def test_the_cache_changes_no_token(model: CausalLM, rows: range | None, fused: bool) -> None:
    if fused:
        model.model.fuse()
    ids = torch.randint(50, (4, 7))
    tokens = greedy_tokens(model, model.model.embed_tokens(ids), count=COUNT, rows=rows)
    assert torch.equal(tokens, read_anew(model, ids, rows))
    assert len(set(tokens.flatten().tolist())) > 2  # not one token over and over
    assert rows is None or all(token in rows for token in tokens.flatten().tolist())


def test_gradient_checkpointing_changes_no_token_in_training_either(model: CausalLM) -> None:
    embeddings = model.model.embed_tokens(torch.randint(50, (4, 7)))
    expected = greedy_tokens(model, embeddings, count=COUNT)
    model.model.gradient_checkpointing = True
    assert torch.equal(greedy_tokens(model.train(), embeddings, count=COUNT), expected)


def test_a_padded_row_gives_the_tokens_it_gives_alone(model: CausalLM) -> None:
    ids, lengths = torch.randint(50, (3, 9)), torch.tensor([9, 4, 6])
    together = greedy_tokens(model, model.model.embed_tokens(ids), count=COUNT, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = greedy_tokens(model, model.model.embed_tokens(ids[row : row + 1, :length]), count=COUNT)
        assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("padded", [False, True])
def test_no_step_waits_for_a_value(model: CausalLM, padded: bool) -> None:
    """On the meta device tensors have no values: whatever looked at one would raise."""
    lengths = torch.tensor([5, 7], device="meta") if padded else None
    embeddings = torch.empty(2, 7, 32, device="meta")
    tokens = greedy_tokens(model.to("meta"), embeddings, count=COUNT, rows=ROWS, lengths=lengths)
    assert tokens.shape == (2, COUNT)
    assert tokens.is_meta
