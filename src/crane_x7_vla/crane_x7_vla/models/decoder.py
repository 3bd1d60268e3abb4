"""Decoder stack of the language models (Llama; Qwen2 by ``qkv_bias`` and grouped keys), with Hugging Face's names.

The caller gives embeddings and the attention mask, so one stack serves causal and bidirectional models. A
layer is split into ``project`` and ``finish`` around ``attend``: the cache of keys and values, or a second stream that
shares the attention, goes between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crane_x7_vla.models.attention import attend

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Dimensions, by Hugging Face's names. The defaults are those of Llama's configuration class, which the published
    OpenVLA relies on (rms_norm_eps 1e-6, not Llama 2's 1e-5). tied_embeddings: the output matrix is the embedding."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = False
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_attention_heads) or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be an even multiple of num_attention_heads "
                f"{self.num_attention_heads}, and that a multiple of num_key_value_heads {self.num_key_value_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads


class RMSNorm(nn.Module):
    """Root-mean-square norm; torch computes it in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class SelfAttention(nn.Module):
    """Projections of one layer; keys and values may have fewer heads than queries. flash: see ``attend``.

    qkv_proj: all three in one, see ``fuse``.
    """

    qkv_proj: nn.Linear | None

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, key_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.head_dim = config.head_dim
        self.key_heads = config.num_key_value_heads
        self.flash = True
        self.q_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, key_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, key_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.register_module("qkv_proj", None)

    def project(self, x: Float[Tensor, "b n d"], rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both rotated) and values, [b, heads, n, head_dim]."""
        if self.qkv_proj is None:
            query, key, value = (self._heads(layer(x)) for layer in (self.q_proj, self.k_proj, self.v_proj))
            return rotate(query, rotary), rotate(key, rotary), value
        heads = self._heads(self.qkv_proj(x))
        rotated = rotate(heads[:, : -self.key_heads], rotary)
        return rotated[:, : -self.key_heads], rotated[:, -self.key_heads :], heads[:, -self.key_heads :]

    def fuse(self) -> None:
        """Join the three projections, unless they have adapters: fewer and larger steps, for a model to be run only."""
        layers = (self.q_proj, self.k_proj, self.v_proj) if self.qkv_proj is None else ()
        if layers and all(type(layer) is nn.Linear for layer in layers):
            self.qkv_proj = _joined(layers)
            del self.q_proj, self.k_proj, self.v_proj

    def _heads(self, x: Float[Tensor, "b n _"]) -> Float[Tensor, "b h n d"]:
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


class GatedMLP(nn.Module):
    """SiLU-gated feed-forward layer. gate_up_proj: both in one, see ``fuse``."""

    gate_up_proj: nn.Linear | None

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.register_module("gate_up_proj", None)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)

    def fuse(self) -> None:
        """Join the first two layers, as in ``SelfAttention.fuse``."""
        layers = (self.gate_proj, self.up_proj) if self.gate_up_proj is None else ()
        if layers and all(type(layer) is nn.Linear for layer in layers):
            self.gate_up_proj = _joined(layers)
            del self.gate_proj, self.up_proj


class LayerCache:
    """Keys and values of the tokens that one layer has read, in memory for ``capacity`` tokens taken once.

    How far it is filled is a Python number, so that every shape is known when a CUDA graph is captured. It holds no
    gradient.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.filled = 0
        self._memory: tuple[Tensor, ...] = ()

    def extend(
        self, key: Float[Tensor, "b g n d"], value: Float[Tensor, "b g n d"]
    ) -> tuple[Float[Tensor, "b g k d"], Float[Tensor, "b g k d"]]:
        """Add those of n new tokens; all so far. Raises ValueError where they do not fit."""
        start, self.filled = self.filled, self.filled + key.shape[2]
        if self.filled > self.capacity:
            raise ValueError(f"the cache takes {self.capacity} tokens, not {self.filled}")
        if not self._memory:
            self._memory = tuple(new.new_empty(*new.shape[:2], self.capacity, new.shape[3]) for new in (key, value))
        keys, values = self._memory
        keys[:, :, start : self.filled] = key
        values[:, :, start : self.filled] = value
        return keys[:, :, : self.filled], values[:, :, : self.filled]


class DecoderLayer(nn.Module):
    """Pre-norm layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def project(self, x: Float[Tensor, "b n d"], rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both rotated) and values, [b, heads, n, head_dim]."""
        return self.self_attn.project(self.input_layernorm(x), rotary)

    def finish(self, x: Float[Tensor, "b n d"], attended: Float[Tensor, "b h n c"]) -> Float[Tensor, "b n d"]:
        """Output projection, residuals and MLP."""
        x = x + self.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Rotary,
        mask: Bool[Tensor, "b 1 #n k"] | None,
        causal: bool,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        query, key, value = self.project(x, rotary)
        if cache is not None:
            key, value = cache.extend(key, value)
        return self.finish(x, attend(query, key, value, mask=mask, causal=causal, flash=self.self_attn.flash))


class Decoder(nn.Module):
    """Embeddings in, hidden states after the final norm out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        embeddings: Float[Tensor, "b n d"],
        *,
        mask: Bool[Tensor, "b 1 #n k"] | None = None,
        causal: bool = False,
        positions: Int[Tensor, "#b n"] | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """mask: True where a query may look; None: every token sees every other (if ``causal``, those before it).
        Give no mask when nothing is padded: attention then runs on the fastest kernel. positions: None counts from 0,
        padding too. cache: see ``new_cache``; ``causal`` is for the first call with it."""
        if positions is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        rotary = rotary_table(positions, self.config, embeddings.dtype)
        x = embeddings
        for index, layer in enumerate(self.layers):
            if self.gradient_checkpointing and self.training and cache is None:
                x = checkpoint(layer, x, rotary, mask, causal, use_reentrant=False)
            else:
                x = layer(x, rotary, mask, causal, None if cache is None else cache[index])
        return self.norm(x)

    def fuse(self) -> None:
        """Join the projections that read the same input. Weights get other names, so do not save or train it then."""
        for module in self.modules():
            if isinstance(module, SelfAttention | GatedMLP):
                module.fuse()

    def new_cache(self, capacity: int) -> list[LayerCache]:
        """Empty cache, one part per layer, for calls that continue one another: later tokens see those before."""
        return [LayerCache(capacity) for _ in self.layers]


class CausalLM(nn.Module):
    """Decoder and output matrix under the names ``model`` and ``lm_head``; tied embeddings leave no ``lm_head``."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = None if config.tied_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def logits(self, states: Float[Tensor, "b n d"], rows: range | None = None) -> Float[Tensor, "b n v"]:
        """Scores of every token, or of the tokens ``rows`` alone."""
        start, stop = (None, None) if rows is None else (rows.start, rows.stop)
        if self.lm_head is None:
            return F.linear(states, self.model.embed_tokens.weight[start:stop])
        if type(self.lm_head) is nn.Linear:
            return F.linear(states, self.lm_head.weight[start:stop])
        return self.lm_head(states)[..., start:stop]  # an adapter: its part is not in ``weight``


def _joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    """One layer that gives what all of them give, side by side."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    with torch.device("meta"):
        joined = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=bool(biases))
    joined.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), requires_grad=False)
    if biases:
        joined.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]), requires_grad=False)
    return joined


def rotary_table(positions: Int[Tensor, "b n"], config: DecoderConfig, dtype: torch.dtype) -> Rotary:
    """Cosines and signed sines [b, 1, n, head_dim], computed in float32 (RoPE, half-split as in Hugging Face's models):
    the first half of a head is turned by the second with the sign of minus."""
    exponents = torch.arange(0, config.head_dim, 2, device=positions.device).float() / config.head_dim
    angles = positions[..., None].float() * config.rope_theta**-exponents
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([cosine, cosine], dim=-1).to(dtype), torch.cat([-sine, sine], dim=-1).to(dtype)


def rotate(x: Float[Tensor, "b h n d"], rotary: Rotary) -> Float[Tensor, "b h n d"]:
    """Turn each pair (i, i + d/2) by its angle."""
    cosine, sine = rotary
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, dims=-1), sine)
