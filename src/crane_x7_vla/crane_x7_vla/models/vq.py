"""Residual vector quantisation of action chunks (VQ-BeT, arXiv 2403.03181), as MiniVLA uses it for its action tokens.

A chunk becomes one code per group: the latent's nearest codebook entry, then the nearest entry to what that one leaves,
and so on. Parameter names are the published ones (vq_bet_official vqvae.py at 09d4851, vector-quantize-pytorch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_HIDDEN = 128  # EncoderMLP's default, which no published config changes


@dataclass(frozen=True, slots=True, kw_only=True)
class VQShape:
    """action_horizon, action_dim: T and A of a chunk. n_latent: width of the latent. n_embed: codes in a group.

    n_groups: codes of a chunk, each for what the ones before it leave.
    """

    action_horizon: int
    action_dim: int
    n_latent: int
    n_embed: int
    n_groups: int


class ActionVQ(nn.Module):
    """Between normalised chunks and codes. The codebooks are no parameters: training moves them as averages."""

    def __init__(self, shape: VQShape) -> None:
        super().__init__()
        self.shape = shape
        numbers = shape.action_horizon * shape.action_dim
        self.encoder = _MLP(numbers, shape.n_latent)
        self.decoder = _MLP(shape.n_latent, numbers)
        self.vq_embedding = ResidualQuantizer(shape)

    def encode(self, actions: Float[Tensor, "b t a"]) -> Int[Tensor, "b g"]:
        """Codes of normalised chunks."""
        codes, _, _ = self.vq_embedding(self.encoder(actions.flatten(1)))
        return codes

    def decode(self, codes: Int[Tensor, "b g"]) -> Float[Tensor, "b t a"]:
        """Normalised chunks of codes."""
        return self.actions(self.vq_embedding.entries(codes).sum(1))

    def actions(self, latent: Float[Tensor, "b d"]) -> Float[Tensor, "b t a"]:
        """Normalised chunks of latents."""
        return self.decoder(latent).unflatten(1, (self.shape.action_horizon, self.shape.action_dim))


class ResidualQuantizer(nn.Module):
    """The codebooks, one for each group."""

    def __init__(self, shape: VQShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Group(shape) for _ in range(shape.n_groups))

    def forward(
        self, latent: Float[Tensor, "b d"]
    ) -> tuple[Int[Tensor, "b g"], Float[Tensor, "b g d"], Float[Tensor, "b g d"]]:
        """(codes, their entries, the residuals they stand for); the entries carry no gradient."""
        codes: list[Tensor] = []
        entries: list[Tensor] = []
        residuals: list[Tensor] = []
        residual = latent
        for embed in self.codebooks():
            code = nearest(residual.detach(), embed)
            codes.append(code)
            entries.append(embed[code])
            residuals.append(residual)
            residual = residual - entries[-1]
        return torch.stack(codes, 1), torch.stack(entries, 1), torch.stack(residuals, 1)

    def entries(self, codes: Int[Tensor, "b g"]) -> Float[Tensor, "b g d"]:
        """The codebook entries of codes."""
        return torch.stack([embed[codes[:, group]] for group, embed in enumerate(self.codebooks())], 1)

    def codebooks(self) -> list[Float[Tensor, "k d"]]:
        """Views of each group's codebook; writing into them moves its entries."""
        return [embed[0] for embed in self.buffers()]


def nearest(points: Float[Tensor, "b d"], entries: Float[Tensor, "k d"]) -> Int[Tensor, " b"]:
    """Index of the entry nearest to each point; the first of several."""
    return (entries.square().sum(1) - 2 * points @ entries.T).argmin(1)


class _MLP(nn.Module):
    """VQ-BeT's EncoderMLP, which also decodes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU())
        self.fc = nn.Linear(_HIDDEN, outputs)

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        return self.fc(self.encoder(x))


class _Group(nn.Module):
    """Gives the codebook the published name layers.N._codebook.embed."""

    def __init__(self, shape: VQShape) -> None:
        super().__init__()
        self._codebook = _Codebook(shape)


class _Codebook(nn.Module):
    embed: Tensor

    def __init__(self, shape: VQShape) -> None:
        super().__init__()
        self.register_buffer("embed", torch.zeros(1, shape.n_embed, shape.n_latent))
