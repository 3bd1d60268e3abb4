"""OpenVLA: observation to tensors, and predicted action to joint targets."""

from __future__ import annotations

from crane_x7_vla.backends.openvla.config import OpenVLAConfig
from crane_x7_vla.backends.prismatic_processor import (
    LLAMA_BOS_TOKEN_ID,
    PrismaticProcessor,
    action_units,
    check_vocabulary,
)
from crane_x7_vla.checkpoints.layouts import Assets
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.robot import RobotSpec


class OpenVLAProcessor(PrismaticProcessor):
    """See ``PrismaticProcessor``; a chunk is one action, T = 1."""

    def __init__(
        self, config: OpenVLAConfig, *, robot: RobotSpec, statistics: DatasetStatistics, assets: Assets
    ) -> None:
        settings = config.openvla
        tokens = {"empty_token_id": settings.empty_token_id, "stop_token_id": settings.stop_token_id}
        check_vocabulary(assets, {f"openvla.{name}": token for name, token in tokens.items()})
        super().__init__(
            config,
            units=action_units(config, robot, statistics, bounded=True),
            assets=assets,
            start=[LLAMA_BOS_TOKEN_ID],
            end=settings.empty_token_id,
        )
