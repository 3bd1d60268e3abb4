"""Settings of the OpenVLA backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from crane_x7_vla.backends.prismatic_config import (
    LINEAR_LAYERS,
    TINY_TRAINING,
    LlamaSettings,
    PrismaticVLAConfig,
)
from crane_x7_vla.config.base import CameraConfig, require
from crane_x7_vla.transforms.prompt import SMALL_EMPTY_TOKEN_ID


@dataclass(frozen=True, kw_only=True)
class OpenVLASpecificConfig(LlamaSettings):
    """What is particular to OpenVLA."""

    block: ClassVar[str] = "openvla"

    lora_target: tuple[str, ...] = (*LINEAR_LAYERS, "lm_head")
    """Names of the layers that get adapters, in towers, projector and language model."""
    action_tokenization_bins: int = 256
    """Steps into which the range of each joint is divided; as many tokens of the vocabulary stand for them."""
    strict_reference: bool = False
    """Choose the next token among all, as the reference does, instead of among those that stand for actions."""
    skip_merge_on_save: bool = True
    """Save adapters alone; without it checkpoints also have merged/, unchecked and in the precision of the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bins = self.action_tokenization_bins
        require(bins >= 2, "openvla.action_tokenization_bins", bins, "2 or more")


@dataclass(frozen=True, kw_only=True)
class OpenVLAConfig(PrismaticVLAConfig):
    """Training and running OpenVLA."""

    block: ClassVar[str] = "openvla"

    backend: str = "openvla"
    """Name of the VLA backend."""
    openvla: OpenVLASpecificConfig = field(default_factory=OpenVLASpecificConfig)
    """Settings of OpenVLA."""

    @classmethod
    def tiny(cls) -> OpenVLAConfig:
        """Random weights of a model that trains in seconds on a CPU; for tests and for making a small base."""
        return cls(
            training=TINY_TRAINING,
            openvla=OpenVLASpecificConfig(
                model_id=None,
                architecture="tiny",
                use_lora=False,
                lora_rank=4,
                lora_alpha=4,
                action_tokenization_bins=64,
                empty_token_id=SMALL_EMPTY_TOKEN_ID,
            ),
        )

    @property
    def settings(self) -> OpenVLASpecificConfig:
        """``openvla``."""
        return self.openvla

    @property
    def cameras(self) -> tuple[CameraConfig, ...]:
        """OpenVLA sees one image: that of the first enabled camera."""
        return self.data.enabled_cameras[:1]

    @property
    def action_horizon(self) -> int:
        """One action at a time."""
        return 1
