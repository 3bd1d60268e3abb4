"""The trunk that OpenVLA, OpenVLA-OFT and MiniVLA share: vision towers, projector, language model.

Attribute names are the published ones (HF OpenVLA), so a published checkpoint's keys are this module's keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crane_x7_vla.models.decoder import CausalLM, DecoderConfig, SelfAttention
from crane_x7_vla.models.vit import Attention, VisionTransformer, ViTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PrismaticConfig:
    """Dimensions of a trunk.

    towers: DINOv2 first, SigLIP second (the order of their channels at the projector), or one tower alone.
    """

    towers: tuple[ViTConfig, ...]
    decoder: DecoderConfig

    def __post_init__(self) -> None:
        if len(self.towers) not in (1, 2) or len({(tower.image_size, tower.patches) for tower in self.towers}) != 1:
            raise ValueError("a trunk has one tower, or two with the same image size and number of patches")

    @property
    def image_size(self) -> int:
        """Side of the square image both towers see, pixels."""
        return self.towers[0].image_size

    @property
    def channels(self) -> int:
        """Channels of one preprocessed image: three per tower."""
        return 3 * len(self.towers)

    def with_film(self) -> PrismaticConfig:
        """The same trunk with language modulating every block of the towers (OpenVLA-OFT+)."""
        width = self.decoder.hidden_size
        return replace(self, towers=tuple(replace(tower, film_width=width) for tower in self.towers))


class VisionBackbone(nn.Module):
    """The towers side by side; all images of a batch go through each tower in one call."""

    def __init__(self, config: PrismaticConfig) -> None:
        super().__init__()
        self.channels = config.channels
        self.featurizer = VisionTransformer(config.towers[0])
        self.fused = len(config.towers) == 2
        if self.fused:
            self.fused_featurizer = VisionTransformer(config.towers[1])

    def forward(
        self, pixel_values: Float[Tensor, "b channels h w"], language: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, "b n c"]:
        """pixel_values: images in camera order, each with three channels per tower. language: see ViTConfig.film_width.
        The patches of one image follow those of the one before."""
        batch, channels = pixel_values.shape[:2]
        images = channels // self.channels
        pixels = pixel_values.unflatten(1, (images, self.channels)).flatten(0, 1)
        if language is not None:
            language = language.repeat_interleave(images, dim=0)
        features = self.featurizer(pixels[:, :3], language)
        if self.fused:
            features = torch.cat([features, self.fused_featurizer(pixels[:, 3:], language)], dim=2)
        return features.unflatten(0, (batch, images)).flatten(1, 2)


class Projector(nn.Module):
    """Vision channels to decoder width: three layers for two towers, two for one."""

    def __init__(self, config: PrismaticConfig) -> None:
        super().__init__()
        vision, width = sum(tower.width for tower in config.towers), config.decoder.hidden_size
        self.fused = len(config.towers) == 2
        self.fc1 = nn.Linear(vision, 4 * vision if self.fused else width)
        self.fc2 = nn.Linear(self.fc1.out_features, width)
        if self.fused:
            self.fc3 = nn.Linear(width, width)

    def forward(self, features: Float[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        x = self.fc2(F.gelu(self.fc1(features)))
        return self.fc3(F.gelu(x)) if self.fused else x


class PrismaticModel(nn.Module):
    """Towers, projector and language model, without a head."""

    def __init__(self, config: PrismaticConfig) -> None:
        super().__init__()
        self.prismatic = config
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(config)
        self.language_model = CausalLM(config.decoder)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute blocks and layers in the backward pass: less memory, about a third more time."""
        for module in self.modules():
            if isinstance(module, VisionTransformer | type(self.language_model.model)):
                module.gradient_checkpointing = True

    def use_flash_attention(self, enabled: bool) -> None:
        """Whether torch may take its flash kernel on a GPU, see ``attention.kernels``; a new model does."""
        for module in self.modules():
            if isinstance(module, Attention | SelfAttention):
                module.flash = enabled

    def embed_images(
        self, pixel_values: Float[Tensor, "b channels h w"], language: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Images to decoder tokens."""
        features = self.vision_backbone(pixel_values, language)
        return self.projector(features.to(self.projector.fc1.weight.dtype))


def insert_after_first(text: Float[Tensor, "b n d"], *inserted: Float[Tensor, "b _ d"]) -> Float[Tensor, "b m d"]:
    """[first text token] + inserted tokens + [the other text tokens] (modeling_prismatic.py:382-390)."""
    return torch.cat([text[:, :1], *(tokens.to(text.dtype) for tokens in inserted), text[:, 1:]], dim=1)


def consecutive_rows(
    states: Float[Tensor, "b n d"], first: Int[Tensor, " b"], count: int
) -> Float[Tensor, "b count d"]:
    """``count`` rows of each sample, from its own ``first`` on."""
    rows = first[:, None] + torch.arange(count, device=states.device)
    return states.take_along_dim(rows[..., None], dim=1)


def key_mask(attention_mask: Int[Tensor, "b n"] | Bool[Tensor, "b n"], inserted: int) -> Bool[Tensor, "b 1 1 m"]:
    """Text padding mask to a mask over the keys of the whole sequence, inserted tokens included."""
    mask = attention_mask.bool()
    ones = mask.new_ones(len(mask), inserted)
    return torch.cat([mask[:, :1], ones, mask[:, 1:]], dim=1)[:, None, None]
