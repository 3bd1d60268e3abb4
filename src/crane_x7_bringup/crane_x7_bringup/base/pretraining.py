"""The localisation task that the base learns: model, batches, losses, one update, and how well it does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crane_x7_bringup.base.assets import NOUNS, PHRASES, base_assets, instruction
from crane_x7_bringup.base.scenes import Scenes
from crane_x7_bringup.base.shape import HEAD, HORIZON, IMAGE_SIZE, PATCH, base_config
from crane_x7_vla.backends.base import Batch
from crane_x7_vla.backends.openvla_oft.processor import OpenVLAOFTProcessor
from crane_x7_vla.checkpoints.architecture import trunk_config
from crane_x7_vla.checkpoints.layouts import write_model
from crane_x7_vla.data.statistics import DatasetStatistics, norm_stats
from crane_x7_vla.models.openvla_oft import OFTHeadConfig, OpenVLAOFT
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.types import Observation
from lift.make import DEFAULT_CAMERAS

_GRID = IMAGE_SIZE // PATCH
HELD_OUT = 600
BATCH = 48
_LEARNING_RATE = 1e-3
_WARM_UP = 200
# Weight of the pointing loss against the answer's.
_POINTING = 0.1
# The rate stays at its peak for this share of the run, then falls to zero.
_HOLD = 0.7
# Share of the batch with one cube alone, at the beginning and from the middle of the run on.
_ALONE = (0.7, 0.3)
# Share of the samples whose joint state is hidden, so that the images have to tell.
_STATE_HIDDEN = 0.3
# The eight numbers that the slots of a row learn: the named cube's position in base_link, its position from the finger
# tips (both m), and sine and cosine of four times its yaw, since a cube looks the same after a quarter turn.
_CENTRE = np.array([0.235, 0.0, 0.03, 0.0, 0.0, -0.06, 0.0, 0.0], np.float32)
_UNIT = np.array([0.08, 0.08, 0.05, 0.10, 0.10, 0.08, 1.0, 1.0], np.float32)
_WEIGHT = np.array([1.0, 1.0, 0.5, 1.0, 1.0, 0.5, 0.1, 0.1], np.float32)


class Pretraining:
    """Model, data and optimiser of the localisation task."""

    def __init__(self, scenes: Scenes, *, seed: int) -> None:
        self._scenes = scenes
        self._rng = np.random.default_rng(seed)
        is_alone = np.isnan(scenes.others[:, 0, 0])
        self._alone = HELD_OUT + np.flatnonzero(is_alone[HELD_OUT:])
        self._several = HELD_OUT + np.flatnonzero(~is_alone[HELD_OUT:])
        self.assets = base_assets()
        config = base_config()
        # The state is scaled by its spread over the scenes; the demo's own statistics come near that.
        stats = norm_stats(scenes.state)
        statistics = DatasetStatistics(
            action=stats, state=stats, num_transitions=len(scenes), num_trajectories=len(scenes), fingerprint=""
        )
        self._processor = OpenVLAOFTProcessor(config, robot=CRANE_X7, statistics=statistics, assets=self.assets)
        head = OFTHeadConfig(
            action_dim=CRANE_X7.size,
            action_horizon=HORIZON,
            hidden_dim=HEAD.hidden_dim,
            num_blocks=HEAD.num_blocks,
            state_dim=CRANE_X7.size,
        )
        torch.manual_seed(seed)
        self.model = OpenVLAOFT(trunk_config(self.assets.published, source="the base's config"), head)
        # Points at the named cube from every patch; helps to find it and is thrown away.
        self._pointer = nn.Linear(self.model.language_model.model.norm.weight.numel(), 1)
        self._states = torch.empty(0)
        self.model.language_model.model.register_forward_hook(self._keep_states)
        trained = [*self.model.parameters(), *self._pointer.parameters()]
        matrices = [p for p in trained if p.ndim >= 2]
        vectors = [p for p in trained if p.ndim < 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
            lr=_LEARNING_RATE,
            betas=(0.9, 0.95),
        )
        self.steps = 0

    def step(self, share: float) -> float:
        """One update; ``share`` in [0, 1] of the run is over. Returns the loss."""
        fall = min(1.0, (1.0 - share) / (1.0 - _HOLD))
        for group in self._optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * min(1.0, (self.steps + 1) / _WARM_UP) * fall
        rows = self._choose_rows(share)
        batch = self._batch(rows, training=True)
        hidden = torch.from_numpy(self._rng.random((BATCH, 1)) < _STATE_HIDDEN)
        batch["proprio"] = batch["proprio"].masked_fill(hidden, 0.0)
        target = torch.from_numpy((self._scenes.target[rows] - _CENTRE) / _UNIT)
        loss = ((self.model(**batch) - target[:, None]).abs() * torch.from_numpy(_WEIGHT)).mean()
        (loss + _POINTING * self._pointing_loss(rows)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return float(loss.detach())

    def _keep_states(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._states = output

    def _pointing_loss(self, rows: np.ndarray) -> Tensor:
        """Cross-entropy between where the patches' states point to and where the named cube is, for each image."""
        cameras, patches = len(DEFAULT_CAMERAS), _GRID * _GRID
        states = self._states[:, 1 : 1 + cameras * patches].unflatten(1, (cameras, patches))
        scores = self._pointer(states)[..., 0]
        wanted = torch.from_numpy(spread(self._scenes.pixels[rows]))
        return -(wanted * scores.log_softmax(dim=2)).sum() / wanted.sum().clamp(min=1)

    def _choose_rows(self, share: float) -> np.ndarray:
        """int [BATCH]: scenes of the batch, easy ones first."""
        first, last = _ALONE
        alone = self._rng.random(BATCH) < first + (last - first) * min(1.0, 2 * share)
        return np.where(alone, self._rng.choice(self._alone, BATCH), self._rng.choice(self._several, BATCH))

    def evaluate(self) -> dict[str, float]:
        """On held-out scenes: horizontal error in mm for a lone cube and for the named one of several, and the share of
        those where the nearest cube to the answer is the named one."""
        rows = np.arange(min(HELD_OUT, len(self._scenes)))
        answers: list[np.ndarray] = []
        with torch.inference_mode():
            for part in np.array_split(rows, max(1, len(rows) // 100)):
                answers.append(self.model(**self._batch(part, training=False))[:, -1].numpy())
        place = (np.concatenate(answers) * _UNIT + _CENTRE)[:, :2]
        error = np.linalg.norm(place - self._scenes.target[rows, :2], axis=1)
        distance = np.linalg.norm(place[:, None] - self._scenes.others[rows], axis=2)
        nearest_other = np.min(np.where(np.isnan(distance), np.inf, distance), axis=1)
        alone = np.isinf(nearest_other)
        return {
            "alone_mm": 1000 * float(np.median(error[alone])),
            "named_mm": 1000 * float(np.median(error[~alone])),
            "named_right": float(np.mean(error[~alone] < nearest_other[~alone])),
        }

    def save(self, directory: Path) -> None:
        """The trunk and the state projector in OpenVLA's published layout. The head that named places is left out."""
        tensors = {k: v for k, v in self.model.state_dict().items() if not k.startswith("action_head.")}
        temporary = directory.with_name(f".{directory.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_model(temporary, tensors=tensors, assets=self.assets, components=("proprio_projector",))
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)

    def _batch(self, rows: np.ndarray, *, training: bool) -> Batch:
        samples = [
            self._processor.encode(observation, rng=self._rng if training else None)
            for observation in self._observations(rows, training=training)
        ]
        return self._processor.collate(samples)

    def _observations(self, rows: Sequence[int] | np.ndarray, *, training: bool) -> Iterator[Observation]:
        for row in rows:
            phrase = PHRASES[self._rng.integers(len(PHRASES)) if training else 0]
            noun = NOUNS[self._rng.integers(len(NOUNS)) if training else 0]
            yield Observation(
                images={c.name: self._scenes.images[row, i] for i, c in enumerate(DEFAULT_CAMERAS)},
                state=self._scenes.state[row],
                instruction=instruction(phrase, self._scenes.named[row], noun),
                stamp=0.0,
            )


def spread(pixels: np.ndarray) -> np.ndarray:
    """Places [b, cameras, 2] in the images -> float32 [b, cameras, patches]: shares of the four nearest patches.

    All zero where the place is out of view.
    """
    shares = np.zeros((*pixels.shape[:2], _GRID, _GRID), np.float32)
    for index in np.ndindex(*pixels.shape[:2]):
        if not np.all((pixels[index] >= 0) & (pixels[index] < 1)):
            continue
        column, row = np.clip(pixels[index] * _GRID - 0.5, 0, _GRID - 1)
        left, top = min(int(column), _GRID - 2), min(int(row), _GRID - 2)
        across, down = column - left, row - top
        shares[index][top : top + 2, left : left + 2] = np.outer([1 - down, down], [1 - across, across])
    return shares.reshape(*pixels.shape[:2], -1)
