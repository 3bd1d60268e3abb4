"""OpenVLA: observation to tensors, and predicted action to joint targets."""

from __future__ import annotations

from crane_x7_vla.backends.openvla.config import OpenVLAConfig
from crane_x7_vla.backends.prismatic_processor import LlamaProcessor
from crane_x7_vla.checkpoints.layouts import Assets
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.robot import RobotSpec


class OpenVLAProcessor(LlamaProcessor):
    """See ``PrismaticProcessor``; a chunk is one action, T = 1."""

    def __init__(
        self, config: OpenVLAConfig, *, robot: RobotSpec, statistics: DatasetStatistics, assets: Assets
    ) -> None:
        super().__init__(config, config.openvla, robot=robot, statistics=statistics, assets=assets, bounded=True)
