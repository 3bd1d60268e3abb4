# pyright: strict, reportMissingTypeStubs=false
"""Settings shared by every backend. Command line and YAML derive from these dataclasses and from nothing else.

Each field has a type, a default that runs, and a one-line description below it, which becomes its help text.
Configs are values: never changed after they are made, and free of run-time objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from crane_x7_vla.errors import ConfigError
from crane_x7_vla.protocol import PRIMARY_CAMERA as PRIMARY_NAME
from crane_x7_vla.protocol import camera_topic

ActionForm = Literal["relative", "absolute"]
ActionSource = Literal["auto", "commanded", "next_state"]
LrSchedule = Literal["constant", "cosine"]
MixedPrecision = Literal["bf16", "fp16", "no"]

DEFAULT_WARMUP_STEPS = 1000
"""Warm-up steps where neither warmup_steps nor warmup_ratio is given."""


def require(ok: bool, setting: str, value: object, expected: str) -> None:
    """Raise ConfigError in the suite's wording unless ``ok``; for ``__post_init__`` of configs."""
    if not ok:
        raise ConfigError(f"{setting} is {value!r}; expected {expected}")


def require_choice(setting: str, value: str, choices: Sequence[str]) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    require(value in choices, setting, value, "one of " + ", ".join(choices))


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """A camera of the data set and of the robot. Its topic travels in the checkpoint to the inference node."""

    name: str = PRIMARY_NAME
    """Name of the camera in the data: 'primary' is observation/image, X is observation/image_X."""
    topic: str = ""
    """ROS topic of its images; empty: /camera/color/image_raw for 'primary', else /camera_NAME/color/image_raw."""
    width: int = 0
    """Image width in pixels, checked against the data; 0 takes the recorded width."""
    height: int = 0
    """Image height in pixels, checked against the data; 0 takes the recorded height."""
    enabled: bool = True
    """Whether the model sees this camera."""

    def __post_init__(self) -> None:
        require(bool(self.name), "data.cameras.name", self.name, "a camera name such as 'primary'")
        if not self.topic:
            object.__setattr__(self, "topic", f"/{camera_topic(self.name)}")
        require(self.width >= 0, f"width of camera '{self.name}'", self.width, "pixels, or 0 for the recorded width")
        require(
            self.height >= 0, f"height of camera '{self.name}'", self.height, "pixels, or 0 for the recorded height"
        )


PRIMARY_CAMERA = CameraConfig()
WRIST_CAMERA = CameraConfig(name="wrist")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which episodes are used, and how."""

    data_root: str = "data/tfrecord_logs"
    """Folder with the recorded episodes (episode_*/episode_*.tfrecord)."""
    format: str = "tfrecord"
    """Format of the episodes; tfrecord is what the recorder writes."""
    train_split: float | None = None
    """Share of the episodes used for training; none takes all that are not held out."""
    val_split: float = 0.1
    """Share of the episodes held out for evaluation; 0 trains without evaluation."""
    shuffle: bool = True
    """Draw the training steps in random order."""
    num_workers: int | None = None
    """Processes that read and encode data; none chooses 0 on a CPU, which training keeps busy, up to 4 with a GPU."""
    cache_gb: float = 2.0
    """Recorded images are kept in memory, still compressed, up to this size in GB; only where num_workers is 0."""
    cameras: tuple[CameraConfig, ...] = (PRIMARY_CAMERA,)
    """Cameras of the data set, in the order the model sees them."""
    instruction: str | None = None
    """Instruction given to every episode instead of the recorded ones."""
    control_hz: float = 10.0
    """Steps per second of the data, the policy and the simulated task; checked against the data."""
    action_source: ActionSource = "auto"
    """Training targets: the commanded joint targets, or the next measured states; auto prefers commanded."""
    start_fraction: float = 0.0
    """Share of every batch drawn from the first start_steps steps of episodes; 0 draws all steps alike."""
    start_steps: int = 8
    """How many steps count as the start of an episode, for start_fraction and eval/action_l1_rad_start."""
    statistics_path: str | None = None
    """A dataset_statistics.json to use instead of computing it; it must be of exactly the training episodes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        require(self.format == "tfrecord", "data.format", self.format, "tfrecord")
        require(0 <= self.val_split < 1, "data.val_split", self.val_split, "a share in [0, 1)")
        require(
            self.train_split is None or 0 < self.train_split <= 1 - self.val_split + 1e-9,
            "data.train_split",
            self.train_split,
            f"a share above 0 and at most {1 - self.val_split:g}, what val_split leaves; or none for all of that",
        )
        require(
            self.num_workers is None or self.num_workers >= 0,
            "data.num_workers",
            self.num_workers,
            "0 or more, or none",
        )
        require(self.cache_gb >= 0, "data.cache_gb", self.cache_gb, "0 or more")
        require(self.control_hz > 0, "data.control_hz", self.control_hz, "a rate above 0 Hz")
        require_choice("data.action_source", self.action_source, ("auto", "commanded", "next_state"))
        require(0 <= self.start_fraction <= 1, "data.start_fraction", self.start_fraction, "a share in [0, 1]")
        require(self.start_steps >= 1, "data.start_steps", self.start_steps, "1 or more")
        names = [camera.name for camera in self.cameras]
        require(len(set(names)) == len(names), "data.cameras", names, "each camera name once")

    @property
    def enabled_cameras(self) -> tuple[CameraConfig, ...]:
        """Those that a model may see, in order; ``VLAConfig.cameras`` says which it does."""
        return tuple(camera for camera in self.cameras if camera.enabled)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained. A step is one update of the weights, after accumulation."""

    batch_size: int = 16
    """Samples per process and per accumulation step."""
    num_epochs: int = 100
    """Passes over the training steps; max_steps and max_minutes may end the run earlier."""
    max_steps: int | None = None
    """Updates after which training ends, whatever num_epochs says; 0 saves the model as it is before training."""
    max_minutes: float | None = None
    """Minutes after which training ends with a final checkpoint; the learning rate schedule then ends there too."""
    learning_rate: float = 5e-4
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """Weight decay of AdamW, applied to matrices only."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.999
    """AdamW's decay of the second moment."""
    warmup_steps: int | None = None
    """Steps of linear warm-up, at most a tenth of the run; 1000 where warmup_ratio is not given either."""
    warmup_ratio: float | None = None
    """Warm-up as a share of the run, instead of warmup_steps."""
    lr_schedule: LrSchedule = "constant"
    """Learning rate after the warm-up: constant, or cosine down to lr_final_ratio of the peak."""
    lr_final_ratio: float = 0.0
    """Share of the peak learning rate at which the cosine schedule ends."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients are summed before each update."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    mixed_precision: MixedPrecision = "bf16"
    """Precision of the forward pass: bf16, fp16 (with loss scaling, on a GPU) or no."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    ema_decay: float = 0.0
    """Exponential moving average of the trained weights, used for evaluation and checkpoints; 0 switches it off."""
    save_interval: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    eval_interval: int = 500
    """Steps between evaluations on the held-out episodes; the last step is always evaluated."""
    eval_samples: int = 1024
    """Held-out steps used per evaluation, spread evenly; 0 uses all."""
    log_interval: int = 10
    """Steps between lines of the log."""
    keep_last: int = 0
    """How many of the newest checkpoints are kept besides the best one; 0 keeps all."""
    resume_from_checkpoint: str | None = None
    """Checkpoint directory to go on from, or 'latest' for the newest of this experiment."""
    device: str = "cuda"
    """Where to train: cuda, cuda:N or cpu."""
    use_wandb: bool = False
    """Log to Weights & Biases too; TensorBoard and metrics.jsonl are always written."""
    wandb_project: str = "crane-x7-vla"
    """Weights & Biases project."""
    wandb_entity: str | None = None
    """Weights & Biases user or team."""

    def __post_init__(self) -> None:
        for name, low in (
            ("batch_size", 1),
            ("num_epochs", 1),
            ("gradient_accumulation_steps", 1),
            ("save_interval", 1),
            ("eval_interval", 1),
            ("log_interval", 1),
            ("eval_samples", 0),
            ("keep_last", 0),
            ("max_grad_norm", 0),
            ("weight_decay", 0),
        ):
            value: float = getattr(self, name)
            require(value >= low and math.isfinite(value), f"training.{name}", value, f"{low} or more")
        require(self.max_steps is None or self.max_steps >= 0, "training.max_steps", self.max_steps, "0 or more")
        require(self.max_minutes is None or self.max_minutes > 0, "training.max_minutes", self.max_minutes, "above 0")
        require(
            self.learning_rate > 0 and math.isfinite(self.learning_rate),
            "training.learning_rate",
            self.learning_rate,
            "a number above 0",
        )
        for name in ("beta1", "beta2", "ema_decay"):
            share: float = getattr(self, name)
            require(0 <= share < 1, f"training.{name}", share, "a number in [0, 1)")
        require(
            self.warmup_steps is None or self.warmup_steps >= 0, "training.warmup_steps", self.warmup_steps, "0 or more"
        )
        require(
            self.warmup_ratio is None or 0 <= self.warmup_ratio < 1,
            "training.warmup_ratio",
            self.warmup_ratio,
            "a share in [0, 1)",
        )
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ConfigError(
                f"training.warmup_steps ({self.warmup_steps}) and training.warmup_ratio ({self.warmup_ratio}) are both "
                "given; expected one of them"
            )
        require_choice("training.lr_schedule", self.lr_schedule, ("constant", "cosine"))
        require(0 <= self.lr_final_ratio <= 1, "training.lr_final_ratio", self.lr_final_ratio, "a share in [0, 1]")
        require_choice("training.mixed_precision", self.mixed_precision, ("bf16", "fp16", "no"))
        require(
            self.device in ("cpu", "cuda") or (self.device.startswith("cuda:") and self.device[5:].isdecimal()),
            "training.device",
            self.device,
            "cuda, cuda:N or cpu",
        )


@dataclass(frozen=True, kw_only=True)
class VLAConfig:
    """A training run. Each backend extends it with a block of its own settings, named by ``block``."""

    block: ClassVar[str] = ""
    """Name of the field that holds the backend's own settings, such as openvla_oft."""

    backend: str = ""
    """Name of the VLA backend."""
    robot: str = "crane_x7"
    """Robot whose joints, limits and order the data use."""
    output_dir: str = "./outputs"
    """Folder under which the experiment's folder is made."""
    experiment_name: str = "crane_x7_vla"
    """Name of the experiment; checkpoints go to OUTPUT_DIR/EXPERIMENT_NAME/checkpoint-N."""
    seed: int = 42
    """Seed of the episode split, the order of the data and the initial weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """Settings of the data."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Settings of the training."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(
            bool(self.experiment_name) and "/" not in self.experiment_name and self.experiment_name not in (".", ".."),
            "experiment_name",
            self.experiment_name,
            "a folder name",
        )

    def in_checkpoint(self, directory: Path) -> VLAConfig:
        """These settings for the model in ``directory``: what it brings along is to be read from there.

        Raises CheckpointError where that is missing.
        """
        del directory
        return self

    @property
    def cameras(self) -> tuple[CameraConfig, ...]:
        """Those that the model is fed with, in its order; all enabled ones unless a backend's config says less."""
        return self.data.enabled_cameras

    def camera_flags(self, names: Sequence[str]) -> str:
        """What to type to train on the cameras ``names`` alone; backend configs add what else depends on them."""
        return f"--cameras {','.join(names)}"

    @property
    def history(self) -> int:
        """Earlier observations that the model sees, one control period apart; backend configs say more than 0."""
        return 0

    @property
    def action_horizon(self) -> int:
        """Rows of a predicted chunk (T); backend configs say it (openpi and lerobot: action_horizon, chunk_size)."""
        raise NotImplementedError(f"{type(self).__name__} does not say its action_horizon")

    @property
    def action_form(self) -> ActionForm:
        """relative: joints minus the state of the chunk's observation, gripper absolute; backend configs say it."""
        raise NotImplementedError(f"{type(self).__name__} does not say its action_form")
