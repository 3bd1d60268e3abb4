"""OpenVLA: the Prismatic trunk writes the numbers of one action as tokens, one after another.

MiniVLA is the same network with another decoder and several images; what its tokens stand for is not known here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crane_x7_vla.models.decoding import greedy_tokens
from crane_x7_vla.models.prismatic import PrismaticModel, consecutive_rows, insert_after_first


class OpenVLA(PrismaticModel):
    """The trunk; it has no weights besides.

    pixel_values: images in camera order, channels stacked. input_ids: prompts, without the action. prompt_length:
    tokens of each prompt, the first token included, before padding on the right; None: nothing is padded.
    """

    def forward(
        self,
        pixel_values: Float[Tensor, "b channels h w"],
        input_ids: Int[Tensor, "b n"],
        targets: Int[Tensor, "b c"],
        prompt_length: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c v"]:
        """Logits of each target (action tokens and end) where the prompt and the targets before it were read."""
        count = targets.shape[1]
        if prompt_length is None:
            prompt_length = input_ids.new_full((len(input_ids),), input_ids.shape[1])
        places = prompt_length[:, None] + torch.arange(count - 1, device=input_ids.device)
        ids = F.pad(input_ids, (0, count - 1)).scatter(1, places, targets[:, :-1])
        embeddings, inserted = self._embed(pixel_values, ids)
        states = self.language_model.model(embeddings, causal=True)
        return self.language_model.logits(consecutive_rows(states, prompt_length + (inserted - 1), count))

    def generate(
        self,
        pixel_values: Float[Tensor, "b channels h w"],
        input_ids: Int[Tensor, "b n"],
        prompt_length: Int[Tensor, " b"] | None = None,
        *,
        count: int,
        rows: range | None,
    ) -> Int[Tensor, "b c"]:
        """The ``count`` likeliest tokens after each prompt, among ``rows`` (None: among all)."""
        embeddings, inserted = self._embed(pixel_values, input_ids)
        lengths = None if prompt_length is None else prompt_length + inserted
        return greedy_tokens(self.language_model, embeddings, count=count, rows=rows, lengths=lengths)

    def _embed(
        self, pixel_values: Float[Tensor, "b channels h w"], ids: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b m d"], int]:
        """Decoder tokens of images and text, and how many of them are the images'."""
        text, images = self.language_model.model.embed_tokens(ids), self.embed_images(pixel_values)
        return insert_after_first(text, images), images.shape[1]
