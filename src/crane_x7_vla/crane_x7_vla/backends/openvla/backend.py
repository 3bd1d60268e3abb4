"""OpenVLA: one action at a time, each joint a token."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from crane_x7_vla.backends.openvla.config import OpenVLAConfig
from crane_x7_vla.backends.openvla.processor import OpenVLAProcessor
from crane_x7_vla.backends.token_backend import TokenBackend
from crane_x7_vla.checkpoints.layouts import Assets
from crane_x7_vla.config.yaml import CONFIG_NAME, dump_config
from crane_x7_vla.data.statistics import FILE_NAME as STATISTICS_FILE
from crane_x7_vla.data.statistics import DatasetStatistics, to_json
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.models.action_tokens import BinnedTokens, TokenBins
from crane_x7_vla.robot import RobotSpec

MERGED = "merged"
"""Folder of the whole model in a checkpoint-N, see ``skip_merge_on_save``."""
_PAD_TO_MULTIPLE_OF = 64  # where a config.json does not say it (configuration_prismatic.py)


class OpenVLABackend(TokenBackend[OpenVLAConfig]):
    """See ``Backend``. directory: a complete model directory that is used in place of the config's base model."""

    def __init__(
        self,
        config: OpenVLAConfig,
        *,
        robot: RobotSpec,
        statistics: DatasetStatistics,
        directory: Path | None = None,
    ) -> None:
        super().__init__(config, robot=robot, statistics=statistics, directory=directory)
        settings = config.openvla
        self.processor = OpenVLAProcessor(config, robot=robot, statistics=statistics, assets=self.assets)
        bins = _token_bins(config, self.trunk.decoder.vocab_size, self.assets)
        self.tokens = BinnedTokens(bins, action_dim=robot.size)
        self.end = (settings.stop_token_id,)
        self.strict = settings.strict_reference
        published = {**self.assets.published, "n_action_bins": settings.action_tokenization_bins}
        self.assets = dataclasses.replace(self.assets, published=published)

    def save(self, model: nn.Module, directory: Path) -> None:
        """See ``Backend.save``; without ``skip_merge_on_save`` also a whole model in the folder ``merged``."""
        super().save(model, directory)
        if self.config.openvla.use_lora and not self.config.openvla.skip_merge_on_save:
            from crane_x7_vla.checkpoints.lora import folded  # peft, which merged models do not need

            merged = directory / MERGED
            merged.mkdir()
            self._write_whole(merged, folded(model))
            (merged / CONFIG_NAME).write_text(dump_config(self.config), encoding="utf-8")
            (merged / STATISTICS_FILE).write_text(to_json(self._statistics), encoding="utf-8")


def _token_bins(config: OpenVLAConfig, rows: int, assets: Assets) -> TokenBins:
    """The last tokens of the vocabulary, without the rows that only round its size up (modeling_prismatic.py:497)."""
    settings = config.openvla
    end = rows - int(assets.published.get("pad_to_multiple_of", _PAD_TO_MULTIPLE_OF))
    bins = TokenBins(end=end, bins=settings.action_tokenization_bins)
    special = max(settings.empty_token_id, settings.stop_token_id)
    if bins.rows.start <= special:
        raise ConfigError(
            f"openvla.action_tokenization_bins is {bins.bins}: the tokens below {end} that stand for actions would "
            f"include token {special}, which has another meaning; expected at most {end - special - 1}"
        )
    return bins
