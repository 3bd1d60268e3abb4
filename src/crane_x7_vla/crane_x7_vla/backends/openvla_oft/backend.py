"""OpenVLA-OFT: building the model, its loss and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from crane_x7_vla.backends.base import Batch, Loss
from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.backends.openvla_oft.processor import OpenVLAOFTProcessor
from crane_x7_vla.backends.prismatic_backend import PrismaticBackend
from crane_x7_vla.checkpoints.layouts import FILM, component_keys, shapes_of
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.models.openvla_oft import ACTION_HEAD, PROPRIO, OFTHeadConfig, OpenVLAOFT, new_components
from crane_x7_vla.robot import RobotSpec

_INPUTS = ("pixel_values", "input_ids", "prompt_length", "proprio", "attention_mask")


class OpenVLAOFTBackend(PrismaticBackend[OpenVLAOFTConfig, OpenVLAOFT]):
    """See ``Backend``. directory: a complete model directory that is used in place of the config's base model."""

    model_class = OpenVLAOFT
    unused = ("lm_head",)

    def __init__(
        self,
        config: OpenVLAOFTConfig,
        *,
        robot: RobotSpec,
        statistics: DatasetStatistics,
        directory: Path | None = None,
    ) -> None:
        super().__init__(config, robot=robot, statistics=statistics, directory=directory)
        settings = config.openvla_oft
        if settings.film.enabled:
            self.trunk = self.trunk.with_film()
        self._head = OFTHeadConfig(
            action_dim=robot.size,
            action_horizon=settings.action_horizon,
            hidden_dim=settings.action_head.hidden_dim,
            num_blocks=settings.action_head.num_blocks,
            state_dim=robot.size if settings.proprio.enabled else None,
            film_counts_padding=settings.film.count_padding,
        )
        switched = ((PROPRIO, settings.proprio.enabled), (FILM, settings.film.enabled))
        self.components = (ACTION_HEAD, *(name for name, enabled in switched if enabled))
        self.processor = OpenVLAOFTProcessor(config, robot=robot, statistics=statistics, assets=self.assets)

    def new_model(self) -> OpenVLAOFT:
        """See ``PrismaticBackend``."""
        return OpenVLAOFT(self.trunk, self._head)

    def new_components(self) -> Mapping[str, Mapping[str, Tensor]]:
        """See ``PrismaticBackend``. FiLM starts as the identity."""
        parts = {name: part.state_dict() for name, part in new_components(self.trunk, self._head).items()}
        if FILM not in self.components:
            return parts
        shapes = shapes_of(self._skeleton())
        return {**parts, FILM: {own: torch.zeros(shapes[key]) for own, key in component_keys(FILM, shapes).items()}}

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Mean absolute error over the rows of the normalised chunks that are not padding (OFT's L1 objective).

        Metrics: action_l1_rad; with bounds_q99 also clipped, the share of label entries beyond the range.
        """
        labels, keep = batch["labels"], (~batch["is_pad"]).float()[..., None]
        error = (self._forward(model, batch).float() - labels).abs() * keep
        entries = keep.sum() * labels.shape[-1]
        with torch.no_grad():
            metrics = {"action_l1_rad": (error * self.processor.units.half_span(labels.device)).sum() / entries}
            metrics |= self.processor.units.clipped_share(batch)
        return Loss(error.sum() / entries, metrics)

    def answer(self, model: nn.Module, batch: Batch) -> Tensor:
        """See ``PrismaticBackend``; one pass."""
        return self._forward(model, batch)

    def _trained(self) -> tuple[str, ...]:
        without_proprio = not self.config.openvla_oft.proprio.enabled
        return tuple(name for name in super()._trained() if not (without_proprio and name == PROPRIO))

    def _forward(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(**{name: batch[name] for name in _INPUTS if name in batch})
