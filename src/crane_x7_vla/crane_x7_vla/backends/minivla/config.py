"""Settings of the MiniVLA backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from crane_x7_vla.backends.prismatic_config import (
    LINEAR_LAYERS,
    TINY_TRAINING,
    PrismaticSettings,
    PrismaticVLAConfig,
)
from crane_x7_vla.config.base import (
    PRIMARY_CAMERA,
    WRIST_CAMERA,
    CameraConfig,
    DataConfig,
    require,
)
from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.transforms.prompt import QWEN_PROMPT

ACTION_TOKENS = 256
"""Tokens of their own that MiniVLA adds to Qwen's vocabulary (openvla-mini qwen25.py:60-69)."""


VQ_FOLDER = "vq"
"""Folder of the VQ in an experiment, a checkpoint or a model directory."""


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Chunks of actions as the codes of a residual VQ, which train-vq learns before the model is trained."""

    enabled: bool = True
    """Predict a chunk as one token per group; without it one action, a token per joint."""
    path: str | None = None
    """Folder that train-vq wrote; its content is saved with every checkpoint; none takes the base model's."""
    action_horizon: int = 8
    """Actions in a chunk."""
    n_embed: int = 256
    """Codes in a group, at most 256: a token stands for each."""
    n_latent: int = 512
    """Width of the latent that is quantised."""
    n_groups: int = 7
    """Groups, the tokens of a chunk: each says what the ones before it leave."""
    steps: int = 4000
    """Updates that train-vq makes."""
    batch_size: int = 256
    """Chunks in an update of train-vq."""
    learning_rate: float = 1e-3
    """Learning rate of train-vq at the start; it falls to 0."""

    def __post_init__(self) -> None:
        for name in ("action_horizon", "n_latent", "n_groups", "steps", "batch_size"):
            value: int = getattr(self, name)
            require(value >= 1, f"minivla.vq.{name}", value, "1 or more")
        require(2 <= self.n_embed <= ACTION_TOKENS, "minivla.vq.n_embed", self.n_embed, f"2 to {ACTION_TOKENS}")
        require(self.learning_rate > 0, "minivla.vq.learning_rate", self.learning_rate, "a number above 0")
        if self.path is not None and not self.enabled:
            raise ConfigError(
                f"minivla.vq.path is {self.path}, but minivla.vq.enabled is false; drop one of them: "
                "--vq-path none does without a VQ, --vq-enabled uses that one"
            )


@dataclass(frozen=True, kw_only=True)
class MultiImageConfig:
    """Several images at once: earlier frames, and the wrist camera."""

    enabled: bool = True
    """Give the model several images; without it the newest of the first enabled camera alone."""
    image_history: int = 2
    """Frames of each camera, one control period apart, the newest included."""
    use_wrist_camera: bool = True
    """Give the model the camera 'wrist' too."""

    def __post_init__(self) -> None:
        require(self.image_history >= 1, "minivla.multi_image.image_history", self.image_history, "1 or more")


@dataclass(frozen=True, kw_only=True)
class MiniVLASpecificConfig(PrismaticSettings):
    """What is particular to MiniVLA."""

    block: ClassVar[str] = "minivla"

    model_id: str | None = "Stanford-ILIAD/minivla-vq-libero90-prismatic"
    """Base model: a directory or a Hugging Face id; none starts from random weights (see architecture)."""
    architecture: str = "minivla"
    """Dimensions where model_id is none: minivla or minivla-tiny; a base model brings its own."""
    llm_model_id: str = "Qwen/Qwen2.5-0.5B"
    """Language model that the base model must be built on."""
    vision_backbone: str = "dinosiglip-vit-so-224px"
    """Vision towers that the base model must have."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_target: tuple[str, ...] = LINEAR_LAYERS
    """Names of the layers that get adapters, in towers, projector and language model."""
    prompt: str = QWEN_PROMPT
    """What the language model reads; {instruction} is replaced by the instruction in lower case."""
    n_action_steps: int | None = None
    """Actions executed before the next prediction; none executes the whole chunk (the reference executes one)."""
    vq: VQConfig = field(default_factory=VQConfig)
    """Chunks of actions as codes."""
    multi_image: MultiImageConfig = field(default_factory=MultiImageConfig)
    """Several images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.n_action_steps is None or 1 <= self.n_action_steps <= self.action_horizon,
            "minivla.n_action_steps",
            self.n_action_steps,
            f"1 to the actions of a chunk ({self.action_horizon}), or none",
        )

    @property
    def action_horizon(self) -> int:
        """Rows of a predicted chunk."""
        return self.vq.action_horizon if self.vq.enabled else 1


@dataclass(frozen=True, kw_only=True)
class MiniVLAConfig(PrismaticVLAConfig):
    """Training and running MiniVLA."""

    block: ClassVar[str] = "minivla"

    backend: str = "minivla"
    """Name of the VLA backend."""
    data: DataConfig = field(default_factory=lambda: DataConfig(cameras=(PRIMARY_CAMERA, WRIST_CAMERA)))
    """Settings of the data."""
    minivla: MiniVLASpecificConfig = field(default_factory=MiniVLASpecificConfig)
    """Settings of MiniVLA."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [camera.name for camera in self.data.enabled_cameras]
        images = self.minivla.multi_image
        if images.enabled and images.use_wrist_camera and WRIST_CAMERA.name not in names:
            raise ConfigError(
                f"minivla.multi_image.use_wrist_camera is true, but data.cameras enables {', '.join(names)}. "
                f"For these alone: {self.camera_flags(names)}; for the wrist too: "
                f"{self.camera_flags([*names, WRIST_CAMERA.name])}"
            )
        if not self.cameras:
            raise ConfigError(
                f"data.cameras enables {', '.join(names)} alone and minivla.multi_image.use_wrist_camera is false; "
                "enable another camera: --cameras primary"
            )

    @classmethod
    def tiny(cls) -> MiniVLAConfig:
        """Random weights of a model that trains in seconds on a CPU, without VQ; for tests and for a small base."""
        return cls(
            training=TINY_TRAINING,
            minivla=MiniVLASpecificConfig(
                model_id=None,
                architecture="minivla-tiny",
                use_lora=False,
                lora_rank=4,
                lora_alpha=4,
                vq=VQConfig(
                    enabled=False, action_horizon=4, n_embed=16, n_latent=16, n_groups=3, steps=60, batch_size=32
                ),
            ),
        )

    def in_checkpoint(self, directory: Path) -> MiniVLAConfig:
        """See ``VLAConfig``: with the VQ of ``directory``."""
        if not self.minivla.vq.enabled:
            return self
        path = directory / VQ_FOLDER
        if not path.is_dir():
            raise CheckpointError(f"{directory} lacks {VQ_FOLDER}/, what its action tokens stand for; copy it again")
        return replace(self, minivla=replace(self.minivla, vq=replace(self.minivla.vq, path=str(path))))

    @property
    def settings(self) -> MiniVLASpecificConfig:
        """``minivla``."""
        return self.minivla

    @property
    def cameras(self) -> tuple[CameraConfig, ...]:
        """All enabled cameras with ``multi_image``, the wrist's if it is to be used; else the first of them."""
        images, enabled = self.minivla.multi_image, self.data.enabled_cameras
        if not images.enabled:
            return enabled[:1]
        return tuple(camera for camera in enabled if images.use_wrist_camera or camera.name != WRIST_CAMERA.name)

    def camera_flags(self, names: Sequence[str]) -> str:
        """See ``VLAConfig``; that there is no wrist camera among them is to be said, too."""
        images, flags = self.minivla.multi_image, super().camera_flags(names)
        without_wrist = images.enabled and images.use_wrist_camera and WRIST_CAMERA.name not in names
        return f"{flags} --no-multi-image-use-wrist-camera" if without_wrist else flags

    @property
    def history(self) -> int:
        """Earlier observations that the model sees."""
        images = self.minivla.multi_image
        return images.image_history - 1 if images.enabled else 0

    @property
    def action_horizon(self) -> int:
        """Rows of a predicted chunk."""
        return self.minivla.action_horizon

    @property
    def n_action_steps(self) -> int:
        """Rows executed before the next prediction."""
        return self.minivla.n_action_steps or self.action_horizon
