"""Vision transformer of the Prismatic family: DINOv2 with registers, and SigLIP.

Parameter names are those of the published OpenVLA checkpoints (timm's, with ``scale_factor`` for LayerScale), so
loading is ``load_state_dict``. The last block, the final norm and the pooling, which the family never uses, are not
built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crane_x7_vla.models.attention import attend


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTConfig:
    """One tower.

    blocks: how many are run; Prismatic takes the features of the second last of ``timm`` depth, so depth - 1.
    registers: tokens after the class token; class and register tokens get no position and are dropped at the end.
    layer_scale: initial value, None for no LayerScale.
    film_width: width of the language vector that modulates every block (OpenVLA-OFT+), None without FiLM.
    """

    image_size: int
    patch_size: int
    width: int
    blocks: int
    heads: int
    mlp_width: int
    class_token: bool = False
    registers: int = 0
    layer_scale: float | None = None
    film_width: int | None = None
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.width % self.heads or self.width % 4:
            raise ValueError(
                f"image size {self.image_size} must be a multiple of the patch size {self.patch_size}, "
                f"width {self.width} of 4 and of the {self.heads} heads"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Feature tokens of one image."""
        return self.grid**2


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Full self-attention with one fused projection. flash: see ``attend``."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.flash = True
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v, flash=self.flash).transpose(1, 2).reshape(b, n, c))


class MLP(nn.Module):
    """Two layers with GELU."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """Learned scale per channel (DINOv2)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return x * self.scale_factor


class Block(nn.Module):
    """Pre-norm block; with FiLM, language scales and shifts the tokens between attention and MLP.

    The place of the modulation is openvla-oft's film_vit_wrapper.py (213c5ff).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)
        self.ls1 = nn.Identity() if config.layer_scale is None else LayerScale(config.width, config.layer_scale)
        self.ls2 = nn.Identity() if config.layer_scale is None else LayerScale(config.width, config.layer_scale)
        self.film = config.film_width is not None
        if config.film_width is not None:
            self.scale = _zero_linear(config.film_width, config.width)
            self.shift = _zero_linear(config.film_width, config.width)

    def forward(self, x: Float[Tensor, "b n c"], language: Float[Tensor, "b d"] | None) -> Float[Tensor, "b n c"]:
        x = x + self.ls1(self.attn(self.norm1(x)))
        if self.film:
            assert language is not None
            scale, shift = (layer(language.to(layer.weight.dtype)).to(x.dtype) for layer in (self.scale, self.shift))
            x = x * (1 + scale[:, None]) + shift[:, None]
        return x + self.ls2(self.mlp(self.norm2(x)))


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """So that FiLM changes nothing until it has learnt something."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class VisionTransformer(nn.Module):
    """Normalised pixels to patch features."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.prefix_tokens = int(config.class_token) + config.registers
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(sine_cosine_positions(config.grid, config.width))
        if config.class_token:
            self.cls_token = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        if config.registers:
            self.reg_token = nn.Parameter(torch.randn(1, config.registers, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"], language: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, "b n c"]:
        """language: mean language embedding, needed when the tower has FiLM and ignored otherwise."""
        x = self.patch_embed(pixels.to(self.pos_embed.dtype)) + self.pos_embed
        prefix = []
        if self.config.class_token:
            prefix.append(self.cls_token.expand(len(x), -1, -1))
        if self.config.registers:
            prefix.append(self.reg_token.expand(len(x), -1, -1))
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, language, use_reentrant=False)
            else:
                x = block(x, language)
        return x[:, self.prefix_tokens :]


def sine_cosine_positions(grid: int, width: int) -> Float[Tensor, "1 n c"]:
    """Where a position table starts when there are no weights to load: sines and cosines of row and column.

    A learnt table that starts random leaves a small model blind for most of its training (MAE, Appendix A.1 has the
    formula; MoCo v3 keeps it fixed, here it is learnt on).
    """
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = axis[:, None].expand(grid, grid, -1)
    columns = axis[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).reshape(1, grid * grid, width)
