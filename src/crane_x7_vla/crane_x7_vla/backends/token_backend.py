"""The families that write actions as tokens of the language model, one after another: OpenVLA and MiniVLA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crane_x7_vla.backends.base import Batch, Loss
from crane_x7_vla.backends.prismatic_backend import Config, PrismaticBackend
from crane_x7_vla.backends.prismatic_processor import PrismaticProcessor
from crane_x7_vla.models.action_tokens import ActionTokens
from crane_x7_vla.models.openvla import OpenVLA


class TokenBackend(PrismaticBackend[Config, OpenVLA]):
    """Base class. A family says its ``tokens`` and the ids that ``end`` an answer, which are learnt too.

    strict: choose the next token among all, as the published code does, instead of among those that stand for actions.
    """

    model_class = OpenVLA
    tokens: ActionTokens
    end: tuple[int, ...]
    processor: PrismaticProcessor
    strict = False

    def new_model(self) -> OpenVLA:
        """See ``PrismaticBackend``."""
        return OpenVLA(self.trunk)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy of the action tokens and those that end the answer, over the whole vocabulary.

        Metrics, of tokens predicted where the true ones before them were read: token_accuracy and action_l1_rad, the
        rounding to tokens included; where labels are clipped also clipped, the share of entries beyond the range.
        Actions decoded one token after another, as the arm executes them, are further off.
        """
        labels, keep = batch["labels"], (~batch["is_pad"]).float()[..., None]
        tokens = self.tokens.ids(labels)
        end = torch.tensor(self.end, device=tokens.device).expand(len(tokens), -1)
        targets = torch.cat([tokens, end], dim=1)
        logits = model(batch["pixel_values"], batch["input_ids"], targets, _prompt_length(batch)).float()
        with torch.no_grad():
            guess = self._likeliest(logits[:, : self.tokens.count])
            units = self.processor.units
            error = (self.tokens.values(guess) - labels).abs() * units.half_span(labels.device) * keep
            metrics = {
                "token_accuracy": (guess == tokens).float().mean(),
                "action_l1_rad": error.sum() / (keep.sum() * labels.shape[-1]),
            }
            metrics |= units.clipped_share(batch)
        return Loss(F.cross_entropy(logits.flatten(0, 1), targets.flatten()), metrics)

    def answer(self, model: nn.Module, batch: Batch) -> Tensor:
        """See ``PrismaticBackend``; decoded greedily."""
        tokens = self.bare(model).generate(
            batch["pixel_values"],
            batch["input_ids"],
            _prompt_length(batch),
            count=self.tokens.count,
            rows=None if self.strict else self.tokens.rows,
        )
        return self.tokens.values(tokens)

    def comparable(self, model: nn.Module, batch: Batch) -> Tensor:
        """See ``Backend.comparable``: the tokens mixed by their likelihoods, where the tokens of no motion were read
        before each one."""
        pixels, ids, rows = batch["pixel_values"], batch["input_ids"], self.tokens.rows
        still = pixels.new_zeros(len(ids), self.spec.action_horizon, self.robot.size)
        logits = model(pixels, ids, self.tokens.ids(still), _prompt_length(batch)).float()
        return self.tokens.mean(logits[..., rows.start : rows.stop].softmax(dim=2))

    def _likeliest(self, logits: Tensor) -> Tensor:
        """The token that ``answer`` would choose."""
        if self.strict:
            return logits.argmax(dim=2)
        rows = self.tokens.rows
        return logits[..., rows.start : rows.stop].argmax(dim=2) + rows.start


def _prompt_length(batch: Batch) -> Tensor | None:
    return batch["attention_mask"].sum(dim=1) if "attention_mask" in batch else None
