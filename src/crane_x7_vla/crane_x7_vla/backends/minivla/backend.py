"""MiniVLA: building the model, its loss and prediction, and the VQ that travels with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crane_x7_vla.backends.base import Batch, Loss, ModelSpec
from crane_x7_vla.backends.minivla.config import MiniVLAConfig
from crane_x7_vla.backends.minivla.processor import MiniVLAProcessor
from crane_x7_vla.backends.minivla.tokens import ActionTokens, BinnedTokens, VQTokens
from crane_x7_vla.backends.minivla.vq import check_same, fitting_vq, units_of
from crane_x7_vla.backends.prismatic_backend import PrismaticBackend
from crane_x7_vla.backends.prismatic_processor import action_units
from crane_x7_vla.checkpoints.layouts import CONFIG_FILE
from crane_x7_vla.checkpoints.tokenizer import minivla_tokens, small_chat_tokenizer
from crane_x7_vla.checkpoints.vq import FOLDER, TrainedVQ, save_vq
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.models.action_tokens import TokenBins
from crane_x7_vla.models.openvla import OpenVLA
from crane_x7_vla.robot import RobotSpec


class MiniVLABackend(PrismaticBackend[MiniVLAConfig, OpenVLA]):
    """See ``Backend``. directory: a complete model directory that is used in place of the config's base model.

    The VQ is read from that directory, else from ``vq.path``, else from the base model; ``restore`` takes the
    checkpoint's own. tokens and processor exist once there is one.
    """

    model_class = OpenVLA
    tokens: ActionTokens
    processor: MiniVLAProcessor

    def __init__(
        self,
        config: MiniVLAConfig,
        *,
        robot: RobotSpec,
        statistics: DatasetStatistics,
        directory: Path | None = None,
    ) -> None:
        super().__init__(config, statistics=statistics, directory=directory)
        settings = config.minivla
        if self.base is None:
            self.assets = dataclasses.replace(self.assets, tokenizer=small_chat_tokenizer())
        _check_base_model(config, self.assets.published)
        self._robot = robot
        rows, self._end = minivla_tokens(self.assets.tokenizer)
        self._after_actions = rows.stop
        self._vq: TrainedVQ | None = None
        self.spec = ModelSpec(
            cameras=config.cameras,
            action_horizon=config.action_horizon,
            n_action_steps=settings.n_action_steps or config.action_horizon,
            history=config.history,
            action_form=settings.action_form,
        )
        if not settings.vq.enabled:
            self.tokens = BinnedTokens(TokenBins(end=rows.stop, bins=len(rows)), action_dim=robot.size)
            units = action_units(config, robot, statistics)
            self.processor = MiniVLAProcessor(config, units=units, assets=self.assets)
            return
        place = self._find_vq(directory)
        if place is not None:
            self._use_vq(place)

    def new_model(self) -> OpenVLA:
        """See ``PrismaticBackend``."""
        return OpenVLA(self.trunk)

    def build(self) -> nn.Module:
        """See ``PrismaticBackend``. Raises ConfigError where chunks are to be codes and there is no VQ."""
        vq = self.config.minivla.vq
        if vq.enabled and self._vq is None:
            raise ConfigError(
                f"minivla.vq.path is {vq.path or 'none'}, and there is no VQ there; train one with: "
                "python -m crane_x7_vla.training.cli train-vq --data-root DIR, and name its folder: --vq-path DIR"
            )
        return super().build()

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy of the action tokens and the two tokens that end the answer, over the whole vocabulary.

        Metrics, of tokens predicted where the true ones before them were read: token_accuracy and action_l1_rad, the
        VQ's own error included; with bounds_q99 also clipped, the share of label entries beyond the range. Chunks
        decoded one token after another, as the arm executes them, are further off.
        """
        labels, keep = batch["labels"], (~batch["is_pad"]).float()[..., None]
        tokens = self.tokens.ids(labels)
        end = torch.tensor(self._end, device=tokens.device).expand(len(tokens), -1)
        targets = torch.cat([tokens, end], dim=1)
        logits = model(batch["pixel_values"], batch["input_ids"], targets, _prompt_length(batch)).float()
        with torch.no_grad():
            rows, count = self.tokens.rows, self.tokens.count
            guess = logits[:, :count, rows.start : rows.stop].argmax(dim=2) + rows.start
            units = self.processor.units
            error = (self.tokens.values(guess) - labels).abs() * units.half_span(labels.device) * keep
            metrics = {
                "token_accuracy": (guess == tokens).float().mean(),
                "action_l1_rad": error.sum() / (keep.sum() * labels.shape[-1]),
            }
            metrics |= units.clipped_share(batch)
        return Loss(F.cross_entropy(logits.flatten(0, 1), targets.flatten()), metrics)

    def predict(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        running: Sequence[Any] | None = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Chunks [b, T, A] in model units, decoded greedily. running and rng play no part: no blending, no noise."""
        del running, rng
        tokens = self.bare(model).generate(
            batch["pixel_values"],
            batch["input_ids"],
            _prompt_length(batch),
            count=self.tokens.count,
            rows=self.tokens.rows,
        )
        return self.tokens.values(tokens)

    def comparable(self, model: nn.Module, batch: Batch) -> Tensor:
        """See ``Backend.comparable``: the tokens mixed by their likelihoods, where the tokens of no motion were read
        before each one."""
        pixels, ids, rows = batch["pixel_values"], batch["input_ids"], self.tokens.rows
        still = pixels.new_zeros(len(ids), self.spec.action_horizon, self._robot.size)
        logits = model(pixels, ids, self.tokens.ids(still), _prompt_length(batch)).float()
        return self.tokens.mean(logits[..., rows.start : rows.stop].softmax(dim=2))

    def save(self, model: nn.Module, directory: Path) -> None:
        """See ``PrismaticBackend``; the VQ lies in a folder of its own."""
        super().save(model, directory)
        if self._vq is not None:
            (directory / FOLDER).mkdir()
            save_vq(self._vq, directory / FOLDER)

    def restore(self, directory: Path) -> nn.Module:
        """See ``PrismaticBackend``; from now on with the VQ of ``directory``."""
        if self.config.minivla.vq.enabled:
            self._use_vq(directory / FOLDER)
        return super().restore(directory)

    def check_base(self, directory: Path) -> None:
        """See ``PrismaticBackend``; the VQ must be the same, too."""
        super().check_base(directory)
        if self._vq is not None:
            check_same(self._vq, directory / FOLDER)

    def _find_vq(self, directory: Path | None) -> Path | None:
        """Where the VQ is to be read from, None where there is none yet."""
        path = self.config.minivla.vq.path
        base = None if self.base is None else self.base / FOLDER
        places = [directory and directory / FOLDER, path and Path(path), base]
        return next((place for place in places if place and (place / CONFIG_FILE).is_file()), None)

    def _use_vq(self, directory: Path) -> None:
        self._vq = fitting_vq(directory, self.config, self._robot)
        self.tokens = VQTokens(self._vq.vq, end=self._after_actions)
        units = units_of(self._vq, self._robot)
        self.processor = MiniVLAProcessor(self.config, units=units, assets=self.assets)


def _prompt_length(batch: Batch) -> Tensor | None:
    return batch["attention_mask"].sum(dim=1) if "attention_mask" in batch else None


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
