"""OpenVLA-OFT: observation to tensors, and predicted chunk to joint targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crane_x7_vla.backends.base import Batch, Sample
from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.backends.prismatic_processor import (
    LLAMA_BOS_TOKEN_ID,
    RAW_IMAGES,
    CameraImages,
    Prompts,
    action_units,
    check_vocabulary,
    collate_text,
)
from crane_x7_vla.checkpoints.layouts import Assets
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.types import Observation

# What the slots hold is zeroed by the model; the reference fills them with id 1 too (modeling_prismatic.py:734-755).
_SLOT_TOKEN_ID = 1


class OpenVLAOFTProcessor:
    """Turns observations into batches and predictions into radians; the same object trains and runs.

    Sample keys: pixel_values float32 [channels, h, w]; input_ids int64 [n] (prompt, slots, stop token);
    prompt_length int64 []; proprio float32 [S] in model units (if enabled); with actions also labels float32 [T, A] in
    model units and is_pad bool [T]. A batch has attention_mask bool [b, n] only where something is padded.
    """

    def __init__(
        self, config: OpenVLAOFTConfig, *, robot: RobotSpec, statistics: DatasetStatistics, assets: Assets
    ) -> None:
        settings = config.openvla_oft
        self._settings = settings
        self.units = action_units(config, robot, statistics)
        tokens = {"empty_token_id": settings.empty_token_id, "stop_token_id": settings.stop_token_id}
        check_vocabulary(assets, {f"openvla_oft.{name}": token for name, token in tokens.items()})
        self._images = CameraImages(config.cameras, assets=assets, image_aug=settings.image_aug)
        self._prompts = Prompts(
            settings.prompt, assets.tokenizer, start=[LLAMA_BOS_TOKEN_ID], end=settings.empty_token_id
        )
        slots = torch.full((settings.action_horizon * robot.size,), _SLOT_TOKEN_ID)
        self._answer = torch.cat([slots, torch.tensor([settings.stop_token_id])])

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
        sample = {"pixel_values": self._images.pixels(observation, rng), **inputs}
        if actions is not None:
            horizon = self._settings.action_horizon
            sample |= self.units.labels(observation, actions, action_horizon=horizon, is_pad=is_pad)
        return sample

    def encode_raw(self, observation: Observation) -> Sample:
        """See ``Processor.encode_raw``."""
        inputs = self._inputs(observation)
        return {RAW_IMAGES: self._images.raw(observation), **inputs}

    def collate(self, samples: Sequence[Sample], *, multiple: int = 1) -> Batch:
        """See ``Processor.collate``. Text is padded on the right."""
        return collate_text(samples, multiple=multiple)

    def prepare(self, batch: Batch) -> Batch:
        """See ``Processor.prepare``."""
        return self._images.prepare(batch)

    def decode(self, prediction: Tensor, observations: Sequence[Observation]) -> np.ndarray:
        """See ``Processor.decode``."""
        return self.units.targets(prediction, observations)

    def _inputs(self, observation: Observation) -> Sample:
        """All but the images, which are checked too."""
        self.units.check(observation)
        self._images.check(observation)
        prompt = self._prompts.ids(observation.instruction)
        inputs = {"input_ids": torch.cat([prompt, self._answer]), "prompt_length": torch.tensor(len(prompt))}
        if self._settings.proprio.enabled:
            inputs["proprio"] = torch.from_numpy(self.units.state(observation))
        return inputs
