"""Images and texts as the Prismatic trunk reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from crane_x7_vla.backends.action_units import ActionUnits
from crane_x7_vla.backends.base import Batch, Sample
from crane_x7_vla.backends.prismatic_config import ImageAugConfig, LlamaSettings, PrismaticVLAConfig
from crane_x7_vla.checkpoints.layouts import Assets
from crane_x7_vla.config.base import CameraConfig
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.errors import CheckpointError, ConfigError, DataError
from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.transforms.device_images import DeviceImages
from crane_x7_vla.transforms.image import Augmentation, model_image, resize
from crane_x7_vla.transforms.prompt import prompt_text
from crane_x7_vla.types import Observation

_LLAMA_BOS_TOKEN_ID = 1
RAW_IMAGES = "images"
"""Key of the images of ``encode_raw``, of which ``prepare`` makes pixel_values."""
_PAD_TOKEN_ID = 0
_LONGEST_INSTRUCTION = 1000  # characters; attention over what somebody pasted would take memory without end
_KEPT_PROMPTS = 256


class CameraImages:
    """The cameras of an observation to the pixels of the towers."""

    def __init__(self, cameras: Sequence[CameraConfig], *, assets: Assets, image_aug: ImageAugConfig) -> None:
        self._cameras = tuple(cameras)
        self._size = int(assets.published["image_sizes"][0])
        self._normalizations = assets.normalizations
        self._augmentation = _augmentation(image_aug)
        self._on_device = DeviceImages(
            size=self._size,
            normalizations=self._normalizations,
            crop_scale=image_aug.crop_scale if image_aug.enabled else 1.0,
        )

    def check(self, observation: Observation) -> None:
        """Raise DataError for a missing camera, or one whose images have another shape than in training."""
        missing = [camera.name for camera in self._cameras if camera.name not in observation.images]
        if missing:
            raise DataError(
                f"no image of camera {', '.join(missing)}; the model needs "
                f"{', '.join(camera.name for camera in self._cameras)}, "
                f"the observation has {', '.join(observation.images) or 'none'}"
            )
        for camera in self._cameras:
            height, width = observation.images[camera.name].shape[:2]
            if camera.width and camera.height and width * camera.height != height * camera.width:
                raise DataError(
                    f"camera {camera.name} shows {width} x {height} pixels, but the model was trained on "
                    f"{camera.width} x {camera.height}; another shape would be squashed. Set the camera to that size"
                )

    def raw(self, observation: Observation) -> Tensor:
        """uint8 [cameras, H, W, 3]: the images in camera order; of different sizes, the model's squares of them."""
        images = [observation.images[camera.name] for camera in self._cameras]
        if len({image.shape for image in images}) > 1:
            images = [resize(image, self._size) for image in images]
        return torch.from_numpy(np.stack(images))

    def prepare(self, batch: Batch) -> Batch:
        """RAW_IMAGES uint8 [b, n, H, W, 3] of a batch become pixel_values, on the batch's device."""
        batch = dict(batch)
        return {"pixel_values": self._on_device(batch.pop(RAW_IMAGES)), **batch}

    def pixels(self, observation: Observation, rng: np.random.Generator | None) -> Tensor:
        """float32 [channels, h, w]: the images in camera order, channels stacked. rng: augments them."""
        images = [
            model_image(
                observation.images[camera.name],
                size=self._size,
                normalizations=self._normalizations,
                augmentation=self._augmentation,
                rng=rng,
            )
            for camera in self._cameras
        ]
        return torch.from_numpy(np.concatenate(images))


class Prompts:
    """Instructions to token ids, which are kept: an episode has the same one at every step.

    start: ids before the text. end: id after it, unless the text ends with it already; None for none.
    """

    def __init__(self, template: str, tokenizer: Tokenizer, *, start: Sequence[int], end: int | None) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._start = tuple(start)
        self._end = end
        self._known: dict[str, Tensor] = {}

    def ids(self, instruction: str) -> Tensor:
        """int64 [n]. Raises DataError for an instruction that is too long."""
        if len(instruction) > _LONGEST_INSTRUCTION:
            raise DataError(
                f"the instruction has {len(instruction)} characters; expected a sentence of at most "
                f"{_LONGEST_INSTRUCTION}, such as: pick up the red cube"
            )
        if instruction not in self._known:
            if len(self._known) == _KEPT_PROMPTS:
                self._known.clear()
            text = prompt_text(self._template, instruction)
            ids = [*self._start, *self._tokenizer.encode(text, add_special_tokens=False).ids]
            if self._end is not None and ids[-1] != self._end:
                ids.append(self._end)
            self._known[instruction] = torch.tensor(ids)
        return self._known[instruction]


class PrismaticProcessor:
    """Turns observations into batches and predictions into radians; the same object trains and runs.

    Sample keys: pixel_values float32 [channels, h, w]; input_ids int64 [n], the prompt; with actions also labels
    float32 [T, A] in model units and is_pad bool [T]. A batch has attention_mask bool [b, n] only where something is
    padded. Families add to them in ``_inputs``. start, end: see ``Prompts``.
    """

    def __init__(
        self,
        config: PrismaticVLAConfig,
        *,
        units: ActionUnits,
        assets: Assets,
        start: Sequence[int] = (),
        end: int | None = None,
    ) -> None:
        settings = config.settings
        self.units = units
        self._action_horizon = config.action_horizon
        self._images = CameraImages(config.cameras, assets=assets, image_aug=settings.image_aug)
        self._prompts = Prompts(settings.prompt, assets.tokenizer, start=start, end=end)

    def encode(
        self,
        observation: Observation,
        actions: np.ndarray | None = None,
        *,
        is_pad: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
    ) -> Sample:
        """See ``Processor.encode``."""
        inputs = self._inputs(observation)
        sample = {"pixel_values": self._pixels(observation, rng), **inputs}
        if actions is not None:
            sample |= self.units.labels(observation, actions, action_horizon=self._action_horizon, is_pad=is_pad)
        return sample

    def encode_raw(self, observation: Observation) -> Sample:
        """See ``Processor.encode_raw``."""
        inputs = self._inputs(observation)
        return {RAW_IMAGES: self._raw(observation), **inputs}

    def collate(self, samples: Sequence[Sample], *, multiple: int = 1) -> Batch:
        """See ``Processor.collate``. Text is padded on the right."""
        return collate_text(samples, multiple=multiple)

    def prepare(self, batch: Batch) -> Batch:
        """See ``Processor.prepare``."""
        return self._images.prepare(batch)

    def decode(self, prediction: Tensor, observations: Sequence[Observation]) -> np.ndarray:
        """See ``Processor.decode``. prediction: [b, T, A] in model units."""
        return self.units.targets(prediction, observations)

    def _inputs(self, observation: Observation) -> Sample:
        """All but the images, which are checked too."""
        self.units.check(observation)
        self._images.check(observation)
        return {"input_ids": self._prompts.ids(observation.instruction)}

    def _pixels(self, observation: Observation, rng: np.random.Generator | None) -> Tensor:
        return self._images.pixels(observation, rng)

    def _raw(self, observation: Observation) -> Tensor:
        return self._images.raw(observation)


class LlamaProcessor(PrismaticProcessor):
    """Prompts as Llama's families have them: its first token before the text, the empty one after it. settings: the
    config's block. bounded: see ``ActionUnits``. Raises ConfigError for a token that the base model does not have."""

    def __init__(
        self,
        config: PrismaticVLAConfig,
        settings: LlamaSettings,
        *,
        robot: RobotSpec,
        statistics: DatasetStatistics,
        assets: Assets,
        bounded: bool = False,
    ) -> None:
        tokens = {"empty_token_id": settings.empty_token_id, "stop_token_id": settings.stop_token_id}
        check_vocabulary(assets, {f"{settings.block}.{name}": token for name, token in tokens.items()})
        super().__init__(
            config,
            units=action_units(config, robot, statistics, bounded=bounded),
            assets=assets,
            start=[_LLAMA_BOS_TOKEN_ID],
            end=settings.empty_token_id,
        )


def check_vocabulary(assets: Assets, tokens: dict[str, int]) -> None:
    """Raise where the embedding has too few rows, ConfigError for one of ``tokens`` {setting: id}, else
    CheckpointError for the tokenizer."""
    vocabulary = assets.tokenizer.get_vocab_size()
    rows = assets.published["text_config"].get("vocab_size", vocabulary)
    for setting, token in tokens.items():
        if not 0 <= token < rows:
            raise ConfigError(f"{setting} is {token}, but the base model's vocabulary has {rows} tokens")
    if vocabulary > rows:
        raise CheckpointError(f"the tokenizer has {vocabulary} tokens, the base model's embedding {rows} rows")


def action_units(
    config: PrismaticVLAConfig, robot: RobotSpec, statistics: DatasetStatistics, *, bounded: bool = False
) -> ActionUnits:
    """The units that a config says. bounded: see ``ActionUnits``."""
    settings = config.settings
    return ActionUnits(
        robot,
        statistics,
        action_form=settings.action_form,
        normalization=settings.normalization,
        span_floor=settings.span_floor,
        action_source=config.data.action_source,
        bounded=bounded,
    )


def collate_text(samples: Sequence[Sample], *, multiple: int = 1) -> Batch:
    """Stack samples; input_ids are padded on the right, to a multiple of ``multiple`` tokens. attention_mask
    bool [b, n] is there only if something is."""
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0] if key != "input_ids"}
    texts = [sample["input_ids"] for sample in samples]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=_PAD_TOKEN_ID)
    batch["input_ids"] = torch.nn.functional.pad(ids, (0, -ids.shape[1] % multiple), value=_PAD_TOKEN_ID)
    lengths = torch.tensor([len(text) for text in texts])
    if int(lengths.min()) != batch["input_ids"].shape[1]:
        batch["attention_mask"] = torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]
    return batch


def _augmentation(config: ImageAugConfig) -> Augmentation | None:
    if not config.enabled:
        return None
    return Augmentation(
        crop_scale=config.crop_scale,
        brightness=config.brightness,
        contrast=config.contrast,
        saturation=config.saturation,
        hue=config.hue,
    )
