"""Action numbers as tokens of the language model's vocabulary: 256 bins over [-1, 1] (openvla action_tokenizer.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBins:
    """Equal bins counted down from ``end``, the id after the last action token: 32000 in Llama's vocabulary (the last
    words are overwritten), 151921 in MiniVLA's (tokens of their own)."""

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
