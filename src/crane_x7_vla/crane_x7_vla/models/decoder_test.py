"""The decoder equals transformers' models on the same weights."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from crane_x7_vla.models.decoder import CausalLM, DecoderConfig

torch.set_num_threads(1)
DIMENSIONS = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
}


def models(kind: str) -> tuple[CausalLM, torch.nn.Module]:
    """Ours and transformers' with the same random weights, published keys and all."""
    torch.manual_seed(0)
    if kind == "llama":
        oracle, ours = LlamaForCausalLM(LlamaConfig(**DIMENSIONS)), CausalLM(DecoderConfig(**DIMENSIONS))
    else:
        rope = {"rope_type": "default", "rope_theta": 1e6}
        oracle = Qwen2ForCausalLM(Qwen2Config(**DIMENSIONS, rope_parameters=rope, tie_word_embeddings=True))
        ours = CausalLM(DecoderConfig(**DIMENSIONS, rope_theta=1e6, qkv_bias=True, tied_embeddings=True))
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = oracle.state_dict()
    if kind == "qwen2":
        del weights["lm_head.weight"]  # the embedding under a second name
    ours.load_state_dict(weights, strict=True)
    return ours.eval(), oracle.eval()


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_causal_logits_equal_those_of_transformers(kind: str, fused: bool) -> None:
    ours, oracle = models(kind)
    if fused:
        ours.model.fuse()
        ours.model.fuse()  # once more changes nothing
        assert not any(
            "q_proj" in name or "up_proj.weight" in name.replace("gate_up", "") for name in ours.state_dict()
        )
    ids = torch.randint(50, (2, 11))
    with torch.inference_mode():
        logits = ours.logits(ours.model(ours.model.embed_tokens(ids), causal=True))
        expected = oracle(input_ids=ids).logits
    assert difference(logits, expected) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_bidirectional_states_equal_those_of_transformers_with_padding(kind: str) -> None:
    ours, oracle = models(kind)
    ids, keep = torch.randint(50, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    keep[1, 6:] = False
    mask = keep[:, None, None].expand(2, 1, 9, 9)
    with torch.inference_mode():
        states = ours.model(ours.model.embed_tokens(ids), mask=keep[:, None, None])
        expected = oracle.get_submodule("model")(input_ids=ids, attention_mask=mask).last_hidden_state
        alone = ours.model(ours.model.embed_tokens(ids[1:, :6]))
    assert difference(states[keep], expected[keep]) < 1e-5
    assert difference(states[1, :6], alone[0]) < 1e-5


@pytest.mark.parametrize("causal", [True, False])
def test_the_first_position_sees_the_last_only_without_a_causal_mask(causal: bool) -> None:
    ours, _ = models("llama")
    ids = torch.randint(50, (1, 7))
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % 50
    with torch.inference_mode():
        first, second = (ours.model(ours.model.embed_tokens(x), causal=causal)[0, 0] for x in (ids, other))
    assert torch.equal(first, second) == causal


def test_gradient_checkpointing_changes_no_gradient() -> None:
    ours, _ = models("llama")
    ours.train()
    gradients = []
    for recompute in (False, True):
        ours.model.gradient_checkpointing = recompute
        ours.zero_grad()
        ours.model(ours.model.embed_tokens(torch.arange(5)[None])).square().sum().backward()
        gradients.append([parameter.grad for parameter in ours.model.layers.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_sequence_read_in_pieces_over_the_cache_gives_the_same_states(kind: str) -> None:
    ours, _ = models(kind)
    ids = torch.randint(50, (2, 8))
    cache = ours.model.new_cache(8)
    with torch.inference_mode():
        whole = ours.model(ours.model.embed_tokens(ids), causal=True)
        pieces = [ours.model(ours.model.embed_tokens(ids[:, :5]), causal=True, cache=cache)]
        for place in range(5, 8):
            embeddings, positions = ours.model.embed_tokens(ids[:, place : place + 1]), torch.tensor([[place]])
            pieces.append(ours.model(embeddings, positions=positions, cache=cache))
        assert difference(torch.cat(pieces, dim=1), whole) < 1e-5
        with pytest.raises(ValueError, match="the cache takes 8 tokens, not 9"):
            ours.model(embeddings, positions=torch.tensor([[8]]), cache=cache)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_scores_of_some_tokens_are_those_of_all(kind: str) -> None:
    ours, _ = models(kind)
    states = torch.randn(1, 3, 32)
    torch.testing.assert_close(ours.logits(states, range(20, 36)), ours.logits(states)[..., 20:36])


def test_projections_with_adapters_are_not_joined() -> None:
    ours, _ = models("qwen2")
    inject_adapter_in_model(LoraConfig(target_modules=["v_proj"], init_lora_weights=False), ours)
    ids = torch.randint(50, (1, 5))
    with torch.inference_mode():
        before = ours.model(ours.model.embed_tokens(ids), causal=True)
        ours.model.fuse()
        after = ours.model(ours.model.embed_tokens(ids), causal=True)
    assert difference(after, before) < 1e-5
    names = set(ours.state_dict())
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert "model.layers.0.mlp.gate_up_proj.weight" in names


def test_scores_of_some_tokens_count_an_adapter_on_the_output_matrix() -> None:
    ours, _ = models("llama")
    states = torch.randn(1, 3, 32)
    bare = ours.logits(states, range(20, 36))
    inject_adapter_in_model(LoraConfig(target_modules=["lm_head"], init_lora_weights=False), ours)
    adapted = ours.logits(states, range(20, 36))
    assert not torch.allclose(adapted, bare)
    torch.testing.assert_close(adapted, ours.logits(states)[..., 20:36])
