"""What the base looks like: its folder, and the settings that the demo's training shares with its pretraining."""

from __future__ import annotations

from pathlib import Path

from crane_x7_vla.backends.openvla_oft.config import (
    ActionHeadConfig,
    FilmConfig,
    OpenVLAOFTConfig,
    OpenVLAOFTSpecificConfig,
)
from crane_x7_vla.backends.prismatic_config import ImageAugConfig

BASE_DIRECTORY = Path(__file__).parents[1] / "models" / "openvla-oft-tiny"
IMAGE_SIZE = 64
PATCH = 8
HORIZON = 4
HEAD = ActionHeadConfig(hidden_dim=128, num_blocks=2)
# Ids in the small tokenizer: "▁" between prompt and slots, "</s>" after them.
EMPTY_TOKEN_ID = 3
STOP_TOKEN_ID = 2


def base_config() -> OpenVLAOFTConfig:
    """Settings that shape what the model sees; the demo's training uses the same."""
    return OpenVLAOFTConfig(
        openvla_oft=OpenVLAOFTSpecificConfig(
            model_id=None,
            use_lora=False,
            action_horizon=HORIZON,
            film=FilmConfig(enabled=False),
            action_head=HEAD,
            empty_token_id=EMPTY_TOKEN_ID,
            stop_token_id=STOP_TOKEN_ID,
            image_aug=ImageAugConfig(crop_scale=1.0, brightness=0.1, contrast=0.1, saturation=0.0, hue=0.0),
        )
    )
