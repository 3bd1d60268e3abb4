"""MiniVLA: observation to tensors, and predicted chunk to joint targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crane_x7_vla.backends.action_units import ActionUnits
from crane_x7_vla.backends.base import Batch, Sample
from crane_x7_vla.backends.minivla.config import MiniVLAConfig
from crane_x7_vla.backends.prismatic_processor import (
    RAW_IMAGES,
    CameraImages,
    Prompts,
    check_vocabulary,
    collate_text,
)
from crane_x7_vla.checkpoints.layouts import Assets
from crane_x7_vla.types import Observation


class MiniVLAProcessor:
    """Turns observations into batches and predictions into radians; the same object trains and runs.

    Sample keys: pixel_values float32 [channels, h, w], the frames from the oldest to the newest, the cameras of each
    in order (openvla-mini datasets.py:41-57); input_ids int64 [n], the prompt alone; with actions also labels float32
    [T, A] in model units, of which the backend makes tokens, and is_pad bool [T]. A batch has attention_mask
    bool [b, n] only where something is padded.
    """

    def __init__(self, config: MiniVLAConfig, *, units: ActionUnits, assets: Assets) -> None:
        settings = config.minivla
        self.units = units
        check_vocabulary(assets, {})
        self._frames = config.history + 1
        self._action_horizon = config.action_horizon
        self._images = CameraImages(config.cameras, assets=assets, image_aug=settings.image_aug)
        self._prompts = Prompts(settings.prompt, assets.tokenizer, start=(), end=None)

    def encode(
        self,
        observation: Observation,
        actions: np.ndarray | None = None,
        *,
        is_pad: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
    ) -> Sample:
        """See ``Processor.encode``. ``observation.past`` may be shorter than the history, as an episode begins."""
        inputs = self._inputs(observation)
        sample = {"pixel_values": self._pixels(observation, rng), **inputs}
        if actions is not None:
            sample |= self.units.labels(observation, actions, action_horizon=self._action_horizon, is_pad=is_pad)
        return sample

    def encode_raw(self, observation: Observation) -> Sample:
        """See ``Processor.encode_raw``."""
        inputs = self._inputs(observation)
        return {RAW_IMAGES: torch.cat([self._images.raw(frame) for frame in self._seen(observation)]), **inputs}

    def collate(self, samples: Sequence[Sample], *, multiple: int = 1) -> Batch:
        """See ``Processor.collate``. Text is padded on the right."""
        return collate_text(samples, multiple=multiple)

    def prepare(self, batch: Batch) -> Batch:
        """See ``Processor.prepare``."""
        return self._images.prepare(batch)

    def decode(self, prediction: Tensor, observations: Sequence[Observation]) -> np.ndarray:
        """See ``Processor.decode``. prediction: [b, T, A] in model units."""
        return self.units.targets(prediction, observations)

    def _pixels(self, observation: Observation, rng: np.random.Generator | None) -> Tensor:
        seed = None if rng is None else int(rng.integers(2**63))  # all frames are cropped and coloured alike
        return torch.cat(
            [
                self._images.pixels(frame, None if seed is None else np.random.default_rng(seed))
                for frame in self._seen(observation)
            ]
        )

    def _inputs(self, observation: Observation) -> Sample:
        """All but the images, which are checked too."""
        self.units.check(observation)
        for frame in self._seen(observation):
            self._images.check(frame)
        return {"input_ids": self._prompts.ids(observation.instruction)}

    def _seen(self, observation: Observation) -> list[Observation]:
        """From the oldest to the newest; what is missing is replaced by the newest, as in the reference
        (run_libero_eval.py:213-225)."""
        earlier = observation.past[: self._frames - 1]
        missing = self._frames - 1 - len(earlier)
        return [*[observation] * missing, *reversed(earlier), observation]
