"""OpenVLA-OFT: the Prismatic trunk read in parallel, with an L1 head over a chunk of actions.

The text is followed by one empty slot per action number. Attention is bidirectional over the whole sequence, the slots'
embeddings are zero, and the head reads the states one place before each slot (as the reference does, a left-over of
next-token prediction; openvla-oft modeling_prismatic.py:901-918).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crane_x7_vla.models.heads import L1ActionHead, ProprioProjector
from crane_x7_vla.models.prismatic import (
    PrismaticConfig,
    PrismaticModel,
    consecutive_rows,
    insert_after_first,
    key_mask,
)

ACTION_HEAD = "action_head"
PROPRIO = "proprio_projector"


@dataclass(frozen=True, slots=True, kw_only=True)
class OFTHeadConfig:
    """What is added to the trunk. state_dim None: no proprioception token.

    film_counts_padding: whether padding is part of the text whose mean FiLM reads in training, as in the reference: a
    prompt then means something else beside a longer one.
    """

    action_dim: int
    action_horizon: int
    hidden_dim: int
    num_blocks: int
    state_dim: int | None
    film_counts_padding: bool = False

    @property
    def slots(self) -> int:
        """Action numbers in a chunk, one text position each."""
        return self.action_dim * self.action_horizon


def new_components(config: PrismaticConfig, head: OFTHeadConfig) -> dict[str, nn.Module]:
    """What the trunk lacks, with random weights, by the name it has in the model."""
    width = config.decoder.hidden_size
    components: dict[str, nn.Module] = {
        ACTION_HEAD: L1ActionHead(
            width, action_dim=head.action_dim, hidden_dim=head.hidden_dim, num_blocks=head.num_blocks
        )
    }
    if head.state_dim is not None:
        components[PROPRIO] = ProprioProjector(head.state_dim, width)
    return components


class OpenVLAOFT(PrismaticModel):
    """Trunk, ``action_head`` and ``proprio_projector``."""

    action_head: L1ActionHead
    proprio_projector: ProprioProjector

    def __init__(self, config: PrismaticConfig, head: OFTHeadConfig) -> None:
        super().__init__(config)
        self.head = head
        for name, component in new_components(config, head).items():
            self.add_module(name, component)

    def forward(
        self,
        pixel_values: Float[Tensor, "b channels h w"],
        input_ids: Int[Tensor, "b n"],
        prompt_length: Int[Tensor, " b"],
        proprio: Float[Tensor, "b s"] | None = None,
        attention_mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b t a"]:
        """Normalised chunk. input_ids: prompt, slots, stop token, padding; see ``hidden`` for the rest."""
        return self.action_head(self.hidden(pixel_values, input_ids, prompt_length, proprio, attention_mask))

    def hidden(
        self,
        pixel_values: Float[Tensor, "b channels h w"],
        input_ids: Int[Tensor, "b n"],
        prompt_length: Int[Tensor, " b"],
        proprio: Float[Tensor, "b s"] | None = None,
        attention_mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b slots d"]:
        """Decoder states that the head reads.

        pixel_values: images in camera order, channels stacked. prompt_length: tokens before the first slot, the first
        token included. proprio: normalised state. attention_mask: True on text that is not padding; None if none is.
        """
        decoder = self.language_model.model
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        is_slot = (places >= prompt_length[:, None]) & (places < prompt_length[:, None] + self.head.slots)
        text = decoder.embed_tokens(input_ids).masked_fill(is_slot[..., None], 0)
        inserted = [self.embed_images(pixel_values, self._language(text, attention_mask))]
        if self.head.state_dim is not None:
            if proprio is None:
                raise ValueError("this model was built with a proprioception token, but no proprio was given")
            inserted.append(self.proprio_projector(proprio)[:, None])
        count = sum(tokens.shape[1] for tokens in inserted)
        mask = None if attention_mask is None else key_mask(attention_mask, count)
        states = decoder(insert_after_first(text, *inserted), mask=mask)
        return consecutive_rows(states, prompt_length + (count - 1), self.head.slots)

    def _language(
        self, text: Float[Tensor, "b n d"], attention_mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b d"] | None:
        """Mean embedding of the text without the slots, for FiLM."""
        if self.prismatic.towers[0].film_width is None:
            return None
        if attention_mask is None or (self.training and self.head.film_counts_padding):
            return text.sum(1) / (text.shape[1] - self.head.slots)
        words = attention_mask.sum(1, keepdim=True) - self.head.slots
        return (text * attention_mask[..., None]).sum(1) / words
