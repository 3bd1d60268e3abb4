"""MiniVLA: chunks as codes of a VQ, which travels with the model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from crane_x7_vla.backends.minivla.config import VQ_FOLDER, MiniVLAConfig
from crane_x7_vla.backends.minivla.processor import MiniVLAProcessor
from crane_x7_vla.backends.minivla.vq import TRAIN_A_VQ, check_same, fitting_vq, units_of
from crane_x7_vla.backends.prismatic_processor import action_units
from crane_x7_vla.backends.token_backend import TokenBackend
from crane_x7_vla.checkpoints.layouts import CONFIG_FILE
from crane_x7_vla.checkpoints.tokenizer import minivla_tokens, small_chat_tokenizer
from crane_x7_vla.checkpoints.vq import TrainedVQ, save_vq
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.models.action_tokens import BinnedTokens, TokenBins, VQTokens
from crane_x7_vla.robot import RobotSpec

logger = logging.getLogger(__name__)


class MiniVLABackend(TokenBackend[MiniVLAConfig]):
    """See ``Backend``. directory: a complete model directory that is used in place of the config's base model.

    The VQ is read from that directory, else from ``vq.path``, else from the base model; ``restore`` takes the
    checkpoint's own. tokens and processor exist once there is one.
    """

    language_model = "qwen2"

    def __init__(
        self,
        config: MiniVLAConfig,
        *,
        robot: RobotSpec,
        statistics: DatasetStatistics,
        directory: Path | None = None,
    ) -> None:
        super().__init__(config, robot=robot, statistics=statistics, directory=directory)
        settings = config.minivla
        if self.base is None:
            self.assets = dataclasses.replace(self.assets, tokenizer=small_chat_tokenizer())
        _check_base_model(config, self.assets.published)
        rows, self.end = minivla_tokens(self.assets.tokenizer)
        self._after_actions = rows.stop
        self._vq: TrainedVQ | None = None
        self._vq_place: Path | None = None
        if not settings.vq.enabled:
            self.tokens = BinnedTokens(TokenBins(end=rows.stop, bins=len(rows)), action_dim=robot.size)
            units = action_units(config, robot, statistics, bounded=True)
            self.processor = MiniVLAProcessor(config, units=units, assets=self.assets)
            return
        place = self._find_vq(directory)
        if place is not None:
            self._use_vq(place)

    def build(self) -> nn.Module:
        """See ``PrismaticBackend``. Raises ConfigError where chunks are to be codes and there is no VQ."""
        if self.config.minivla.vq.enabled:
            if self._vq is None:
                raise ConfigError(f"minivla.vq.path is none, and the base model brings no VQ; {TRAIN_A_VQ}")
            logger.info("VQ: %s", self._vq_place)
        return super().build()

    def save(self, model: nn.Module, directory: Path) -> None:
        """See ``PrismaticBackend``; the VQ lies in a folder of its own."""
        super().save(model, directory)
        if self._vq is not None:
            (directory / VQ_FOLDER).mkdir()
            save_vq(self._vq, directory / VQ_FOLDER)

    def restore(self, directory: Path) -> nn.Module:
        """See ``PrismaticBackend``; from now on with the VQ of ``directory``."""
        place = directory / VQ_FOLDER
        if self.config.minivla.vq.enabled and place != self._vq_place:
            self._use_vq(place)
        return super().restore(directory)

    def check_base(self, directory: Path) -> None:
        """See ``PrismaticBackend``; the VQ must be the same, too."""
        super().check_base(directory)
        if self._vq is not None:
            check_same(self._vq, directory / VQ_FOLDER)

    def _find_vq(self, directory: Path | None) -> Path | None:
        """Where the VQ is to be read from, None where there is none yet. Raises ConfigError where vq.path has none."""
        if directory is not None:
            return directory / VQ_FOLDER
        path = self.config.minivla.vq.path
        if path is not None:
            if not (Path(path) / CONFIG_FILE).is_file():
                raise ConfigError(f"minivla.vq.path is {path}, and there is no VQ there; {TRAIN_A_VQ}")
            return Path(path)
        place = None if self.base is None else self.base / VQ_FOLDER
        return place if place is not None and (place / CONFIG_FILE).is_file() else None

    def _use_vq(self, directory: Path) -> None:
        self._vq, self._vq_place = fitting_vq(directory, self.config, self.robot), directory
        self.tokens = VQTokens(self._vq.vq, end=self._after_actions)
        units = units_of(self._vq, self.robot)
        self.processor = MiniVLAProcessor(self.config, units=units, assets=self.assets)


def _check_base_model(config: MiniVLAConfig, published: Mapping[str, Any]) -> None:
    """Raise ConfigError where the base has another language model or other towers than the config says."""
    settings = config.minivla
    for setting, wanted, name in (
        ("llm_model_id", settings.llm_model_id, "hf_llm_id"),
        ("vision_backbone", settings.vision_backbone, "vision_backbone_id"),
    ):
        if published.get(name) != wanted:
            raise ConfigError(
                f"minivla.{setting} is {wanted!r}, but the base model's is {published.get(name)!r}; "
                "name a MiniVLA in minivla.model_id, such as Stanford-ILIAD/minivla-vq-libero90-prismatic"
            )
