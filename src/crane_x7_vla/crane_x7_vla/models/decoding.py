"""Greedy decoding of a known number of tokens, as one function of static shapes.

No step depends on a value, so the very function that runs eagerly can be captured as one CUDA graph.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crane_x7_vla.models.decoder import CausalLM


@torch.no_grad()
def greedy_tokens(
    model: CausalLM,
    embeddings: Float[Tensor, "b n d"],
    *,
    count: int,
    rows: range | None = None,
    lengths: Int[Tensor, " b"] | None = None,
) -> Int[Tensor, "b count"]:
    """The ``count`` likeliest tokens one after another.

    rows: the token ids to choose from; None: the whole vocabulary. lengths: what precedes the padding of each row of
    ``embeddings``; None: nothing is padded, which spares the masks. A padded row gives the tokens it gives alone.
    """
    decoder, prompt = model.model, embeddings.shape[1]
    cache = decoder.new_cache(prompt + count - 1)
    states = decoder(embeddings, causal=True, cache=cache)  # padding is on the right: no token before it looks at it
    if lengths is None:
        last, mask = states[:, -1:], None
        place = torch.full((1, 1), prompt, device=embeddings.device)
    else:
        last = states.take_along_dim(lengths[:, None, None] - 1, dim=1)
        columns = torch.arange(prompt + count - 1, device=embeddings.device)
        mask = ((columns < lengths[:, None]) | (columns >= prompt))[:, None, None]
        place = lengths[:, None]
    tokens: list[Tensor] = []
    for step in range(count):
        if step:
            stop = prompt + step
            last = decoder(
                decoder.embed_tokens(tokens[-1]),
                mask=None if mask is None else mask[..., :stop],
                positions=place + (step - 1),
                cache=cache,
            )
        choice = model.logits(last, rows).argmax(dim=2)
        tokens.append(choice if rows is None else choice + rows.start)
    return torch.cat(tokens, dim=1)
