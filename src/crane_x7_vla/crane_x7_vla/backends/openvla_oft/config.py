"""Settings of the OpenVLA-OFT backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from crane_x7_vla.config.base import (
    PRIMARY_CAMERA,
    WRIST_CAMERA,
    ActionForm,
    CameraConfig,
    DataConfig,
    TrainingConfig,
    VLAConfig,
    require,
    require_choice,
)
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.transforms.action import Normalization
from crane_x7_vla.transforms.prompt import OPENVLA_PROMPT, PLACEHOLDER, SMALL_EMPTY_TOKEN_ID


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
class ImageAugConfig:
    """Random changes of the training images. Inference takes the centre crop that matches crop_scale by itself."""

    enabled: bool = True
    """Change training images at random; without it there is no crop at inference either."""
    crop_scale: float = 0.9
    """Area of the random crop in training and of the centre crop at inference; 1 crops nothing."""
    brightness: float = 0.2
    """Largest shift of brightness, as a share of the value range."""
    contrast: float = 0.2
    """Largest relative change of contrast."""
    saturation: float = 0.2
    """Largest relative change of saturation."""
    hue: float = 0.05
    """Largest turn of the hue, as a share of the colour circle."""

    def __post_init__(self) -> None:
        require(0 < self.crop_scale <= 1, "openvla_oft.image_aug.crop_scale", self.crop_scale, "an area in (0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            amount: float = getattr(self, name)
            require(0 <= amount <= 1, f"openvla_oft.image_aug.{name}", amount, "a share in [0, 1]")
        require(0 <= self.hue <= 0.5, "openvla_oft.image_aug.hue", self.hue, "a share in [0, 0.5]")


@dataclass(frozen=True, kw_only=True)
class OpenVLAOFTSpecificConfig:
    """What is particular to OpenVLA-OFT."""

    model_id: str | None = "openvla/openvla-7b"
    """Base model: a directory or a Hugging Face id; none starts from random weights (see architecture)."""
    architecture: str = "openvla-7b"
    """Dimensions where model_id is none: openvla-7b or tiny; a base model brings its own."""
    use_lora: bool = True
    """Train low-rank adapters and trained_modules; without it every weight is trained."""
    lora_rank: int = 32
    """Rank of the adapters."""
    lora_alpha: int = 16
    """Scale of the adapters: their product is multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = 0.05
    """Dropout before the adapters."""
    lora_target: tuple[str, ...] = (
        "qkv",
        "proj",
        "fc1",
        "fc2",
        "fc3",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Names of the layers that get adapters, in towers, projector and language model."""
    trained_modules: tuple[str, ...] = ("action_head", "proprio_projector")
    """Modules trained in full beside the adapters; * matches any text, as in language_model.model.layers.*norm."""
    action_horizon: int = 8
    """Actions predicted at once."""
    n_action_steps: int | None = None
    """Actions executed before the next prediction; none executes the whole chunk."""
    action_form: ActionForm = "relative"
    """relative: joints relative to the measured state, gripper absolute; absolute: all absolute."""
    normalization: Normalization = "bounds_q99"
    """How states and actions are scaled: bounds_q99 (1st and 99th percentile), bounds (min and max) or zscore."""
    span_floor: float = 0.04
    """Smallest range in rad that is scaled to [-1, 1], so that joints at rest do not amplify noise."""
    prompt: str = OPENVLA_PROMPT
    """What the language model reads; {instruction} is replaced by the instruction in lower case."""
    empty_token_id: int = 29871
    """Token between prompt and actions; 29871 in the tokenizer of Llama."""
    stop_token_id: int = 2
    """Token after the actions."""
    proprio: ProprioConfig = field(default_factory=ProprioConfig)
    """The joint state as an input."""
    multi_image: MultiImageConfig = field(default_factory=MultiImageConfig)
    """Several cameras."""
    action_head: ActionHeadConfig = field(default_factory=ActionHeadConfig)
    """The L1 regression head."""
    image_aug: ImageAugConfig = field(default_factory=ImageAugConfig)
    """Augmentation of the training images."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora_target", tuple(self.lora_target))
        object.__setattr__(self, "trained_modules", tuple(self.trained_modules))
        for name in ("lora_rank", "lora_alpha", "action_horizon"):
            value: int = getattr(self, name)
            require(value >= 1, f"openvla_oft.{name}", value, "1 or more")
        require(0 <= self.lora_dropout < 1, "openvla_oft.lora_dropout", self.lora_dropout, "a share in [0, 1)")
        require(not self.use_lora or bool(self.lora_target), "openvla_oft.lora_target", self.lora_target, "layer names")
        require(
            self.n_action_steps is None or 1 <= self.n_action_steps <= self.action_horizon,
            "openvla_oft.n_action_steps",
            self.n_action_steps,
            f"1 to action_horizon ({self.action_horizon}), or none",
        )
        require_choice("openvla_oft.action_form", self.action_form, ("relative", "absolute"))
        require_choice("openvla_oft.normalization", self.normalization, ("bounds_q99", "bounds", "zscore"))
        require(self.span_floor > 0, "openvla_oft.span_floor", self.span_floor, "an angle above 0 rad")
        require(PLACEHOLDER in self.prompt, "openvla_oft.prompt", self.prompt, f"a text with {PLACEHOLDER}")
        if self.model_id is None and self.use_lora:
            raise ConfigError(
                "openvla_oft.use_lora is true but model_id is none: adapters need the weights of a base model. "
                "Name a base in openvla_oft.model_id, or set use_lora to false"
            )


@dataclass(frozen=True, kw_only=True)
class OpenVLAOFTConfig(VLAConfig):
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
        names = ", ".join(camera.name for camera in enabled) or "none"
        if images.enabled and images.num_images != len(enabled):
            raise ConfigError(
                f"openvla_oft.multi_image.num_images is {images.num_images}, but data.cameras enables "
                f"{len(enabled)} ({names}). For one camera: --cameras primary --multi-image-num-images 1"
            )
        if not enabled:
            raise ConfigError("data.cameras enables no camera; OpenVLA-OFT needs at least one")

    @classmethod
    def tiny(cls) -> OpenVLAOFTConfig:
        """Random weights of a model that trains in seconds on a CPU; for tests and for making a small base."""
        return cls(
            training=TrainingConfig(
                batch_size=4, max_steps=20, learning_rate=1e-3, mixed_precision="no", device="cpu", save_interval=10
            ),
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

    @property
    def action_horizon(self) -> int:
        """Rows of a predicted chunk."""
        return self.openvla_oft.action_horizon

    @property
    def action_form(self) -> ActionForm:
        """relative or absolute joints."""
        return self.openvla_oft.action_form
