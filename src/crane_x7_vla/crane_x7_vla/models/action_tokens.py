"""What the action tokens of a language model stand for: the numbers of one action, or the codes of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crane_x7_vla.models.vq import ActionVQ


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBins:
    """Equal bins over [-1, 1] (openvla action_tokenizer.py), counted down from ``end``, the id after the last action
    token: 32000 in Llama's vocabulary (the last words are overwritten), 151921 in MiniVLA's (tokens of their own)."""

    end: int
    bins: int = 256

    @property
    def rows(self) -> range:
        """Ids of the action tokens."""
        return range(self.end - self.bins, self.end)

    def ids(self, values: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Tokens of model units; what lies beyond [-1, 1] gets the outermost."""
        edges = torch.from_numpy(np.linspace(-1, 1, self.bins)).to(values.device)
        return self.end - torch.bucketize(values.double().clamp(-1, 1), edges, right=True)

    def values(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Model units of tokens, float32: the middle of each bin. Edges enclose one bin less than there are tokens, so
        the lowest id (exactly 1) is read like its neighbour, and other tokens like the nearest action token, as in the
        reference."""
        index = (self.end - 1 - ids).clamp(0, self.bins - 2).double()  # computed: a table would be copied to a GPU
        return ((2 * index + 1) / (self.bins - 1) - 1).float()


class ActionTokens(Protocol):
    """rows: ids of the tokens that stand for actions. count: tokens of a chunk."""

    @property
    def rows(self) -> range: ...

    @property
    def count(self) -> int: ...

    def ids(self, actions: Float[Tensor, "b t a"]) -> Int[Tensor, "b c"]:
        """Tokens of chunks in model units."""
        ...

    def values(self, ids: Int[Tensor, "b c"]) -> Float[Tensor, "b t a"]:
        """Chunks in model units, float32; ids that stand for no action are read like the nearest that does."""
        ...

    def mean(self, shares: Float[Tensor, "b c r"]) -> Float[Tensor, "b t a"]:
        """Chunks of mixed tokens: what they stand for before the last step to actions, weighted by the share of each of
        ``rows``; continuous in the shares."""
        ...


class BinnedTokens:
    """One action, a token for each of its numbers."""

    def __init__(self, bins: TokenBins, *, action_dim: int) -> None:
        self._bins = bins
        self.count = action_dim

    @property
    def rows(self) -> range:
        """See ``ActionTokens``."""
        return self._bins.rows

    def ids(self, actions: Float[Tensor, "b 1 a"]) -> Int[Tensor, "b a"]:
        """See ``ActionTokens``."""
        return self._bins.ids(actions[:, 0])

    def values(self, ids: Int[Tensor, "b a"]) -> Float[Tensor, "b 1 a"]:
        """See ``ActionTokens``."""
        return self._bins.values(ids)[:, None]

    def mean(self, shares: Float[Tensor, "b a r"]) -> Float[Tensor, "b 1 a"]:
        """See ``ActionTokens``."""
        ids = torch.arange(self.rows.start, self.rows.stop, device=shares.device)
        return (shares @ self._bins.values(ids))[:, None]


class VQTokens:
    """A chunk, a token for each group of its VQ. Code 0 is the id before ``end``, code 1 the one before that, and so
    on, the same ids in every group (openvla-mini action_tokenizer.py:151-164). The VQ follows the chunks' device."""

    def __init__(self, vq: ActionVQ, *, end: int) -> None:
        self._vq = vq
        self._end = end
        self.count = vq.shape.n_groups

    @property
    def rows(self) -> range:
        """See ``ActionTokens``."""
        return range(self._end - self._vq.shape.n_embed, self._end)

    @torch.no_grad()
    def ids(self, actions: Float[Tensor, "b t a"]) -> Int[Tensor, "b g"]:
        """See ``ActionTokens``."""
        with torch.autocast(actions.device.type, enabled=False):  # half precision would choose other codes
            return self._end - 1 - self._vq.to(actions.device).encode(actions.float())

    @torch.no_grad()
    def values(self, ids: Int[Tensor, "b g"]) -> Float[Tensor, "b t a"]:
        """See ``ActionTokens``."""
        codes = (self._end - 1 - ids).clamp(0, self._vq.shape.n_embed - 1)
        with torch.autocast(ids.device.type, enabled=False):
            return self._vq.to(ids.device).decode(codes)

    @torch.no_grad()
    def mean(self, shares: Float[Tensor, "b g r"]) -> Float[Tensor, "b t a"]:
        """See ``ActionTokens``: the mixed codebook entries, decoded."""
        vq = self._vq.to(shares.device)
        # Ids rise as codes fall.
        entries = [shares[:, group].flip(1) @ book for group, book in enumerate(vq.vq_embedding.codebooks())]
        return vq.actions(torch.stack(entries, 1).sum(1))
