"""OpenVLA-OFT: observation to tensors, and predicted chunk to joint targets."""

from __future__ import annotations

import torch

from crane_x7_vla.backends.base import Sample
from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.backends.prismatic_processor import LlamaProcessor
from crane_x7_vla.checkpoints.layouts import Assets
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.types import Observation

# What the slots hold is zeroed by the model; the reference fills them with id 1 too (modeling_prismatic.py:734-755).
_SLOT_TOKEN_ID = 1


class OpenVLAOFTProcessor(LlamaProcessor):
    """See ``PrismaticProcessor``. input_ids are prompt, slots and stop token; a sample also has prompt_length int64 []
    and, if enabled, proprio float32 [S] in model units."""

    def __init__(
        self, config: OpenVLAOFTConfig, *, robot: RobotSpec, statistics: DatasetStatistics, assets: Assets
    ) -> None:
        settings = config.openvla_oft
        super().__init__(config, settings, robot=robot, statistics=statistics, assets=assets)
        self._proprio = settings.proprio.enabled
        slots = torch.full((settings.action_horizon * robot.size,), _SLOT_TOKEN_ID)
        self._answer = torch.cat([slots, torch.tensor([settings.stop_token_id])])

    def _inputs(self, observation: Observation) -> Sample:
        prompt = super()._inputs(observation)["input_ids"]
        inputs = {"input_ids": torch.cat([prompt, self._answer]), "prompt_length": torch.tensor(len(prompt))}
        if self._proprio:
            inputs["proprio"] = torch.from_numpy(self.units.state(observation))
        return inputs
