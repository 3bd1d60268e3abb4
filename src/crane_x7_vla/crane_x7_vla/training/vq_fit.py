"""Learning a residual VQ of action chunks: encoder and decoder by gradient, codebooks as moving averages.

The recipe is VQ-BeT's (pretrain_vq.py and vqvae.py at 09d4851; vector-quantize-pytorch's averages), but codebooks start
from data instead of noise, entries that nothing is near start anew, and the learning rate falls to zero: so the codes
are all used also where a few thousand chunks of one arm are all there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crane_x7_vla.models.vq import ActionVQ, VQShape, nearest

_COMMITMENT = 5.0
_WEIGHT_DECAY = 1e-4
_DECAY = 0.8
_EPS = 1e-5
# Average share of a vector per batch below which an entry is given up: about twenty batches without any.
_UNUSED = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """steps: updates. batch_size: chunks in an update. learning_rate: Adam's at the start; it falls to 0."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int


def fit(
    chunks: Float[Tensor, "n t a"],
    shape: VQShape,
    settings: FitSettings,
    *,
    report: Callable[[int, ActionVQ], None],
) -> ActionVQ:
    """A VQ of normalised chunks, in evaluation mode.

    report: called with the number of updates made and the VQ: early on, each time twice as late, and at the end.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        vq = ActionVQ(shape)
    random = torch.Generator().manual_seed(settings.seed)
    averages = CodebookAverages(vq, random=random)
    optimizer = torch.optim.Adam(vq.parameters(), lr=settings.learning_rate, weight_decay=_WEIGHT_DECAY)
    next_report = max(1, settings.steps // 64)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        drawn = torch.randint(len(chunks), (min(settings.batch_size, len(chunks)),), generator=random)
        batch = chunks[drawn]
        latent = vq.encoder(batch.flatten(1))
        if step == 0:
            averages.begin(latent.detach())
        codes, entries, residuals = vq.vq_embedding(latent)
        loss = _loss(vq, latent, entries, residuals, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averages.update(codes, residuals.detach())
        if step + 1 == next_report or step + 1 == settings.steps:
            report(step + 1, vq)
            next_report *= 2
    return vq.eval()


def _loss(vq: ActionVQ, latent: Tensor, entries: Tensor, residuals: Tensor, chunks: Tensor) -> Float[Tensor, ""]:
    """Mean absolute error of the reconstruction, plus five times the square of what each group leaves."""
    # Straight through: the decoder's gradient goes to the latent as if nothing had been rounded.
    rounded = latent + (entries.sum(1) - latent).detach()
    left = (residuals - entries).square().mean(dim=(0, 2)).sum()
    return F.l1_loss(vq.actions(rounded), chunks) + _COMMITMENT * left


class CodebookAverages:
    """Moves each codebook entry to the moving average of what it stood for."""

    def __init__(self, vq: ActionVQ, *, random: torch.Generator) -> None:
        self._books = vq.vq_embedding.codebooks()
        self._random = random
        self._counts = [torch.zeros(len(book)) for book in self._books]
        self._sums = [torch.zeros_like(book) for book in self._books]

    def begin(self, latent: Float[Tensor, "b d"]) -> None:
        """Take the first entries from a batch of latents: of each group, what the groups before it leave."""
        residual = latent
        for group, book in enumerate(self._books):
            self._restart(group, torch.arange(len(book)), residual)
            residual = residual - book[nearest(residual, book)]

    def update(self, codes: Int[Tensor, "b g"], residuals: Float[Tensor, "b g d"]) -> None:
        """Move on by one batch; entries that stand for nothing for long start anew from one of its vectors."""
        for group, book in enumerate(self._books):
            counts, sums = self._counts[group], self._sums[group]
            counts.lerp_(torch.bincount(codes[:, group], minlength=len(book)).float(), 1 - _DECAY)
            sums.lerp_(torch.zeros_like(sums).index_add_(0, codes[:, group], residuals[:, group]), 1 - _DECAY)
            total = counts.sum()
            smoothed = (counts + _EPS) / (total + len(book) * _EPS) * total
            book.copy_(sums / smoothed[:, None])
            unused = torch.nonzero(counts < _UNUSED)[:, 0]
            if len(unused):
                self._restart(group, unused, residuals[:, group])

    def _restart(self, group: int, entries: Int[Tensor, " k"], vectors: Float[Tensor, "b d"]) -> None:
        drawn = vectors[torch.randint(len(vectors), (len(entries),), generator=self._random)]
        self._books[group][entries] = drawn
        self._sums[group][entries] = drawn
        self._counts[group][entries] = 1.0
