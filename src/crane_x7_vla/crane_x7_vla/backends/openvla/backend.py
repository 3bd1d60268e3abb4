"""OpenVLA: building the model, its loss and prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crane_x7_vla.backends.base import Batch, Loss, ModelSpec
from crane_x7_vla.backends.openvla.config import OpenVLAConfig
from crane_x7_vla.backends.openvla.processor import OpenVLAProcessor
from crane_x7_vla.backends.prismatic_backend import PrismaticBackend
from crane_x7_vla.checkpoints.layouts import Assets
from crane_x7_vla.config.yaml import CONFIG_NAME, dump_config
from crane_x7_vla.data.statistics import FILE_NAME as STATISTICS_FILE
from crane_x7_vla.data.statistics import DatasetStatistics, to_json
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.models.action_tokens import TokenBins
from crane_x7_vla.models.openvla import OpenVLA
from crane_x7_vla.robot import RobotSpec

MERGED = "merged"
"""Folder of the whole model in a checkpoint-N, see ``skip_merge_on_save``."""
_PAD_TO_MULTIPLE_OF = 64  # where a config.json does not say it (configuration_prismatic.py)


class OpenVLABackend(PrismaticBackend[OpenVLAConfig, OpenVLA]):
    """See ``Backend``. directory: a complete model directory that is used in place of the config's base model."""

    model_class = OpenVLA

    def __init__(
        self,
        config: OpenVLAConfig,
        *,
        robot: RobotSpec,
        statistics: DatasetStatistics,
        directory: Path | None = None,
    ) -> None:
        super().__init__(config, statistics=statistics, directory=directory)
        settings = config.openvla
        self._bins = _token_bins(config, self.trunk.decoder.vocab_size, self.assets)
        published = {**self.assets.published, "n_action_bins": settings.action_tokenization_bins}
        self.assets = dataclasses.replace(self.assets, published=published)
        self.processor = OpenVLAProcessor(config, robot=robot, statistics=statistics, assets=self.assets)
        self._action_dim = robot.size
        self.spec = ModelSpec(
            cameras=config.cameras, action_horizon=1, n_action_steps=1, history=0, action_form=settings.action_form
        )

    def new_model(self) -> OpenVLA:
        """See ``PrismaticBackend``."""
        return OpenVLA(self.trunk)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy of the action tokens and the stop token, over the whole vocabulary.

        Metrics, of tokens predicted where the true ones before them were read: token_accuracy and action_l1_rad; with
        bounds_q99 also clipped, the share of label entries beyond the range. Actions decoded one token after another,
        as the arm executes them, are further off.
        """
        labels = batch["labels"][:, 0]
        tokens = self._bins.ids(labels)
        stop = tokens.new_full((len(tokens), 1), self.config.openvla.stop_token_id)
        targets = torch.cat([tokens, stop], dim=1)
        logits = model(batch["pixel_values"], batch["input_ids"], targets, _prompt_length(batch)).float()
        with torch.no_grad():
            guess = self._likeliest(logits[:, :-1])
            error = (self._bins.values(guess) - labels).abs() * self.processor.units.half_span(labels.device)
            metrics = {"token_accuracy": (guess == tokens).float().mean(), "action_l1_rad": error.mean()}
            metrics |= self.processor.units.clipped_share(batch)
        return Loss(F.cross_entropy(logits.flatten(0, 1), targets.flatten()), metrics)

    def predict(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        running: Sequence[Any] | None = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Actions [b, 1, A] in model units, decoded greedily. running and rng play no part: no blending, no noise."""
        del running, rng
        tokens = self.bare(model).generate(
            batch["pixel_values"],
            batch["input_ids"],
            _prompt_length(batch),
            count=self._action_dim,
            rows=None if self.config.openvla.strict_reference else self._bins.rows,
        )
        return self._bins.values(tokens)[:, None]

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

    def comparable(self, model: nn.Module, batch: Batch) -> Tensor:
        """See ``Backend.comparable``: the mean of each number's distribution, [b, 1, A], where the middle of the range
        was read for the numbers before it."""
        pixels, ids, rows = batch["pixel_values"], batch["input_ids"], self._bins.rows
        middle = self._bins.ids(pixels.new_zeros(len(ids), self._action_dim))
        logits = model(pixels, ids, middle, _prompt_length(batch)).float()[..., rows.start : rows.stop]
        values = self._bins.values(torch.arange(rows.start, rows.stop, device=ids.device))
        return (logits.softmax(dim=-1) @ values)[:, None]

    def _likeliest(self, logits: Tensor) -> Tensor:
        """The token that ``predict`` would choose."""
        if self.config.openvla.strict_reference:
            return logits.argmax(dim=-1)
        rows = self._bins.rows
        return logits[..., rows.start : rows.stop].argmax(dim=-1) + rows.start


def _prompt_length(batch: Batch) -> Tensor | None:
    return batch["attention_mask"].sum(dim=1) if "attention_mask" in batch else None


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
