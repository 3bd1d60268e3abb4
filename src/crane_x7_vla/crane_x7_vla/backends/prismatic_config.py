"""Settings that the backends on the Prismatic trunk share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from crane_x7_vla.config.base import ActionForm, TrainingConfig, VLAConfig, require, require_choice
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.transforms.action import Normalization
from crane_x7_vla.transforms.prompt import OPENVLA_PROMPT, PLACEHOLDER

LINEAR_LAYERS = (
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
"""Layers of towers, projector and decoder."""
TINY_TRAINING = TrainingConfig(
    batch_size=4, max_steps=20, learning_rate=1e-3, mixed_precision="no", device="cpu", save_interval=10
)
"""Training of tiny configs: seconds on a CPU."""


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
        require(0 < self.crop_scale <= 1, "image_aug.crop_scale", self.crop_scale, "an area in (0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            amount: float = getattr(self, name)
            require(0 <= amount <= 1, f"image_aug.{name}", amount, "a share in [0, 1]")
        require(0 <= self.hue <= 0.5, "image_aug.hue", self.hue, "a share in [0, 0.5]")


@dataclass(frozen=True, kw_only=True)
class PrismaticSettings:
    """The block of one backend; each adds its own fields. ``block`` is the block's name, for messages."""

    block: ClassVar[str]

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
    lora_target: tuple[str, ...] = LINEAR_LAYERS
    """Names of the layers that get adapters, in towers, projector and language model."""
    trained_modules: tuple[str, ...] = ()
    """Modules trained in full beside the adapters; * matches any text, as in language_model.model.layers.*norm."""
    action_form: ActionForm = "relative"
    """relative: joints relative to the measured state, gripper absolute; absolute: all absolute."""
    normalization: Normalization = "bounds_q99"
    """How states and actions are scaled: bounds_q99 (percentiles 1 and 99), bounds (min, max) or zscore (mean, std)."""
    span_floor: float = 0.04
    """Smallest range in rad that is scaled to [-1, 1], so that joints at rest do not amplify noise."""
    prompt: str = OPENVLA_PROMPT
    """What the language model reads; {instruction} is replaced by the instruction in lower case."""
    image_aug: ImageAugConfig = field(default_factory=ImageAugConfig)
    """Augmentation of the training images."""
    use_flash_attention: bool = True
    """Let torch's attention take its flash kernel on a GPU; on a CPU it has no effect."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora_target", tuple(self.lora_target))
        object.__setattr__(self, "trained_modules", tuple(self.trained_modules))
        for name in ("lora_rank", "lora_alpha"):
            value: int = getattr(self, name)
            require(value >= 1, f"{self.block}.{name}", value, "1 or more")
        require(0 <= self.lora_dropout < 1, f"{self.block}.lora_dropout", self.lora_dropout, "a share in [0, 1)")
        require(
            not self.use_lora or bool(self.lora_target), f"{self.block}.lora_target", self.lora_target, "layer names"
        )
        require_choice(f"{self.block}.action_form", self.action_form, ("relative", "absolute"))
        require_choice(f"{self.block}.normalization", self.normalization, ("bounds_q99", "bounds", "zscore"))
        require(self.span_floor > 0, f"{self.block}.span_floor", self.span_floor, "an angle above 0 rad")
        require(PLACEHOLDER in self.prompt, f"{self.block}.prompt", self.prompt, f"a text with {PLACEHOLDER}")
        if self.model_id is None and self.use_lora:
            raise ConfigError(
                f"{self.block}.use_lora is true but model_id is none: adapters need the weights of a base model. "
                f"Name a base in {self.block}.model_id, or set use_lora to false"
            )


@dataclass(frozen=True, kw_only=True)
class LlamaSettings(PrismaticSettings):
    """The block of a backend whose language model is Llama."""

    empty_token_id: int = 29871
    """Token between prompt and actions; 29871 in the tokenizer of Llama."""
    stop_token_id: int = 2
    """Token after the actions."""


@dataclass(frozen=True, kw_only=True)
class PrismaticVLAConfig(VLAConfig):
    """Training and running a backend on the Prismatic trunk."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data.enabled_cameras:
            raise ConfigError(f"data.cameras enables no camera; {self.backend} needs at least one")

    @property
    def settings(self) -> PrismaticSettings:
        """The backend's own block."""
        raise NotImplementedError(f"{type(self).__name__} does not say its settings")

    @property
    def action_form(self) -> ActionForm:
        """relative or absolute joints."""
        return self.settings.action_form

    @property
    def n_action_steps(self) -> int:
        """Rows executed before the next prediction: all, unless a backend's config says less."""
        return self.action_horizon
