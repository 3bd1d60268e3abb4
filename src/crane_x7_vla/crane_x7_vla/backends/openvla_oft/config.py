"""Settings of the OpenVLA-OFT backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from crane_x7_vla.backends.prismatic_config import TINY_TRAINING, LlamaSettings, PrismaticVLAConfig
from crane_x7_vla.config.base import (
    PRIMARY_CAMERA,
    WRIST_CAMERA,
    CameraConfig,
    DataConfig,
    require,
)
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.transforms.prompt import SMALL_EMPTY_TOKEN_ID


@dataclass(frozen=True, kw_only=True)
class ProprioConfig:
    """The measured joint state as an input."""

    enabled: bool = True
    """Give the model the normalised joint state as one token."""


@dataclass(frozen=True, kw_only=True)
class MultiImageConfig:
    """More than one camera."""

    enabled: bool = True
    """Give the model several cameras; without it the first enabled camera alone."""
    num_images: int = 2
    """How many cameras (primary and wrist); it must be the number of enabled cameras of the data set."""

    def __post_init__(self) -> None:
        require(self.num_images >= 1, "openvla_oft.multi_image.num_images", self.num_images, "1 or more")


@dataclass(frozen=True, kw_only=True)
class FilmConfig:
    """Feature-wise linear modulation: the instruction scales and shifts what both towers see (OpenVLA-OFT+)."""

    enabled: bool = True
    """Let the instruction modulate every block of the vision towers."""
    count_padding: bool = False
    """Count padding as part of the instruction in training batches, as the published training does."""


@dataclass(frozen=True, kw_only=True)
class ActionHeadConfig:
    """The L1 regression head."""

    hidden_dim: int = 4096
    """Width of the action head's hidden layers."""
    num_blocks: int = 2
    """Residual blocks of the action head."""

    def __post_init__(self) -> None:
        require(self.hidden_dim >= 1, "openvla_oft.action_head.hidden_dim", self.hidden_dim, "1 or more")
        require(self.num_blocks >= 0, "openvla_oft.action_head.num_blocks", self.num_blocks, "0 or more")


@dataclass(frozen=True, kw_only=True)
class OpenVLAOFTSpecificConfig(LlamaSettings):
    """What is particular to OpenVLA-OFT."""

    block: ClassVar[str] = "openvla_oft"

    trained_modules: tuple[str, ...] = ("action_head", "proprio_projector")
    """Modules trained in full beside the adapters; * matches any text, as in language_model.model.layers.*norm."""
    action_horizon: int = 8
    """Actions predicted at once."""
    n_action_steps: int | None = None
    """Actions executed before the next prediction; none executes the whole chunk."""
    film: FilmConfig = field(default_factory=FilmConfig)
    """The instruction in the vision towers."""
    proprio: ProprioConfig = field(default_factory=ProprioConfig)
    """The joint state as an input."""
    multi_image: MultiImageConfig = field(default_factory=MultiImageConfig)
    """Several cameras."""
    action_head: ActionHeadConfig = field(default_factory=ActionHeadConfig)
    """The L1 regression head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.action_horizon >= 1, "openvla_oft.action_horizon", self.action_horizon, "1 or more")
        require(
            self.n_action_steps is None or 1 <= self.n_action_steps <= self.action_horizon,
            "openvla_oft.n_action_steps",
            self.n_action_steps,
            f"1 to action_horizon ({self.action_horizon}), or none",
        )


@dataclass(frozen=True, kw_only=True)
class OpenVLAOFTConfig(PrismaticVLAConfig):
    """Training and running OpenVLA-OFT."""

    block: ClassVar[str] = "openvla_oft"

    backend: str = "openvla-oft"
    """Name of the VLA backend."""
    data: DataConfig = field(default_factory=lambda: DataConfig(cameras=(PRIMARY_CAMERA, WRIST_CAMERA)))
    """Settings of the data."""
    openvla_oft: OpenVLAOFTSpecificConfig = field(default_factory=OpenVLAOFTSpecificConfig)
    """Settings of OpenVLA-OFT."""

    def __post_init__(self) -> None:
        super().__post_init__()
        images, enabled = self.openvla_oft.multi_image, self.data.enabled_cameras
        names = [camera.name for camera in enabled]
        if images.enabled and images.num_images != len(names):
            others = [name for name in (PRIMARY_CAMERA.name, WRIST_CAMERA.name) if name not in names]
            wanted = [*names, *others, *["NAME"] * images.num_images][: images.num_images]
            raise ConfigError(
                f"openvla_oft.multi_image.num_images is {images.num_images}, but data.cameras enables "
                f"{len(names)} ({', '.join(names)}). For these: {self.camera_flags(names)}; "
                f"for {images.num_images}: {self.camera_flags(wanted)}"
            )

    @classmethod
    def tiny(cls) -> OpenVLAOFTConfig:
        """Random weights of a model that trains in seconds on a CPU; for tests and for making a small base."""
        return cls(
            training=TINY_TRAINING,
            openvla_oft=OpenVLAOFTSpecificConfig(
                model_id=None,
                architecture="tiny",
                use_lora=False,
                lora_rank=4,
                lora_alpha=4,
                action_horizon=4,
                empty_token_id=SMALL_EMPTY_TOKEN_ID,
                action_head=ActionHeadConfig(hidden_dim=64),
            ),
        )

    @property
    def cameras(self) -> tuple[CameraConfig, ...]:
        """All enabled cameras with ``multi_image``, else the first of them."""
        return self.data.enabled_cameras if self.openvla_oft.multi_image.enabled else self.data.enabled_cameras[:1]

    def camera_flags(self, names: Sequence[str]) -> str:
        """See ``VLAConfig``; with ``multi_image`` their number is to be said, too."""
        flags = super().camera_flags(names)
        return f"{flags} --multi-image-num-images {len(names)}" if self.openvla_oft.multi_image.enabled else flags

    @property
    def action_horizon(self) -> int:
        """Rows of a predicted chunk."""
        return self.openvla_oft.action_horizon

    @property
    def n_action_steps(self) -> int:
        """Rows executed before the next prediction."""
        return self.openvla_oft.n_action_steps or self.action_horizon

    @property
    def settings(self) -> OpenVLAOFTSpecificConfig:
        """``openvla_oft``."""
        return self.openvla_oft
