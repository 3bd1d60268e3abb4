"""Make the pretrained base that the demo fine-tunes: ``python -m crane_x7_bringup.base``.

Nobody trains a vision-language-action model from scratch on a hundred demonstrations: towers that have seen only their
hundred object positions learn to ignore the camera, because the joint state alone explains most steps. This command
gives the demo's small OpenVLA-OFT what the published one got from its pretraining. It learns to say where the object
named in the instruction is, on thousands of rendered scenes of random objects, arm poses, light and colours. No action
and no part of the demo's task is shown to it.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from crane_x7_vla.backends.base import Batch
from crane_x7_vla.backends.openvla_oft.config import (
    ActionHeadConfig,
    ImageAugConfig,
    OpenVLAOFTConfig,
    OpenVLAOFTSpecificConfig,
)
from crane_x7_vla.backends.openvla_oft.processor import OpenVLAOFTProcessor
from crane_x7_vla.checkpoints.architecture import architecture, trunk_config
from crane_x7_vla.checkpoints.layouts import Assets, default_normalizations, write_model
from crane_x7_vla.checkpoints.tokenizer import small_tokenizer
from crane_x7_vla.data.statistics import DatasetStatistics, norm_stats
from crane_x7_vla.errors import USER_ERRORS, ConfigError
from crane_x7_vla.models.openvla_oft import OFTHeadConfig, OpenVLAOFT
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.transforms.image import resize
from crane_x7_vla.transforms.prompt import OPENVLA_PROMPT, prompt_text
from crane_x7_vla.types import Observation
from lift.make import DEFAULT_CAMERAS
from lift.rendering import choose_gl
from lift.tasks.pick_up import COLOURS

BASE_DIRECTORY = Path(__file__).parent / "models" / "openvla-oft-tiny"
IMAGE_SIZE = 64
_PATCH = 8
_GRID = IMAGE_SIZE // _PATCH
HORIZON = 4
HEAD = ActionHeadConfig(hidden_dim=128, num_blocks=2)
# Ids in the small tokenizer: "▁" between prompt and slots, "</s>" after them.
EMPTY_TOKEN_ID = 3
STOP_TOKEN_ID = 2

_VOCABULARY = 448
_PHRASES = (
    "pick up the {}",
    "pick the {} up",
    "grasp the {}",
    "grab the {}",
    "lift the {}",
    "take the {}",
    "move to the {}",
    "reach for the {}",
)
_NOUNS = ("cube", "block")
_HELD_OUT = 600
_BATCH = 48
_REPORT = 150
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


@dataclass(frozen=True, slots=True)
class Scenes:
    """images: uint8 [N, cameras, S, S, 3]. state: float32 [N, 8] rad. named: colours. target: float32 [N, 8], see
    ``_CENTRE``. others: float32 [N, M, 2] m, where the cubes lie that were not named, NaN where there are fewer.
    pixels: float32 [N, cameras, 2], where the named cube is in each image, see ``lift.scenes.Scene``."""

    images: np.ndarray
    state: np.ndarray
    named: list[str]
    target: np.ndarray
    others: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.named)


def render_scenes(seed: int, count: int) -> Scenes:
    """Random scenes, as small as the model sees them."""
    choose_gl()
    # MuJoCo loads OpenGL when it is imported, so the choice comes first.
    from lift.scenes import SceneSampler

    rng = np.random.default_rng(seed)
    sampler = SceneSampler(DEFAULT_CAMERAS)
    images = np.empty((count, len(DEFAULT_CAMERAS), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    state, target = np.empty((count, CRANE_X7.size), np.float32), np.empty((count, 8), np.float32)
    others = np.full((count, len(COLOURS) - 1, 2), np.nan, np.float32)
    pixels = np.empty((count, len(DEFAULT_CAMERAS), 2), np.float32)
    named: list[str] = []
    try:
        for i in range(count):
            scene = sampler.sample(rng)
            for c, camera in enumerate(DEFAULT_CAMERAS):
                images[i, c] = resize(scene.images[camera.name], IMAGE_SIZE)
                pixels[i, c] = scene.pixels[camera.name]
            state[i] = scene.state
            target[i] = [*scene.position, *scene.from_tip, math.sin(4 * scene.yaw), math.cos(4 * scene.yaw)]
            others[i, : len(scene.others)] = scene.others
            named.append(scene.named)
    finally:
        sampler.close()
    return Scenes(images, state, named, target, others, pixels)


def render_in_parallel(count: int, *, seed: int, workers: int, console: Console) -> Scenes:
    """``count`` scenes, rendered by spawned processes in pieces of a thousand."""
    pieces = [(seed * 1_000_003 + first, min(1000, count - first)) for first in range(0, count, 1000)]
    parts: list[Scenes] = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool, _progress(console) as progress:
        bar = progress.add_task("rendering scenes", total=count)
        for result in [pool.apply_async(render_scenes, piece) for piece in pieces]:
            parts.append(result.get())
            progress.advance(bar, len(parts[-1]))
    return Scenes(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.state for part in parts]),
        [colour for part in parts for colour in part.named],
        np.concatenate([part.target for part in parts]),
        np.concatenate([part.others for part in parts]),
        np.concatenate([part.pixels for part in parts]),
    )


def base_config() -> OpenVLAOFTConfig:
    """Settings that shape what the model sees; the demo's training uses the same."""
    return OpenVLAOFTConfig(
        openvla_oft=OpenVLAOFTSpecificConfig(
            model_id=None,
            use_lora=False,
            action_horizon=HORIZON,
            action_head=HEAD,
            empty_token_id=EMPTY_TOKEN_ID,
            stop_token_id=STOP_TOKEN_ID,
            image_aug=ImageAugConfig(crop_scale=1.0, brightness=0.1, contrast=0.1, saturation=0.0, hue=0.0),
        )
    )


def base_assets() -> Assets:
    """config.json, tokenizer and image normalisation of the base: OpenVLA's, made small."""
    published = dict(architecture("tiny"))
    tower = {"embed_dim": 64, "depth": 3, "num_heads": 4, "patch_size": _PATCH, "mlp_ratio": 2.0}
    published |= {
        "image_sizes": [IMAGE_SIZE, IMAGE_SIZE],
        "timm_model_kwargs": [{**tower, "init_values": 0.5}, tower],
        "text_config": {
            **published["text_config"],
            "vocab_size": _VOCABULARY,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
    }
    texts = [
        prompt_text(OPENVLA_PROMPT, instruction(phrase, colour, noun))
        for phrase in _PHRASES
        for colour in COLOURS
        for noun in _NOUNS
    ]
    tokenizer = small_tokenizer(texts, vocab_size=_VOCABULARY)
    if tokenizer.token_to_id("▁") != EMPTY_TOKEN_ID or tokenizer.token_to_id("</s>") != STOP_TOKEN_ID:
        raise RuntimeError("the small tokenizer's special tokens have moved")
    return Assets(published, tokenizer, default_normalizations(2))


def instruction(phrase: str, colour: str, noun: str) -> str:
    """What an operator might say."""
    return phrase.format(f"{colour} {noun}")


class Pretraining:
    """Model, data and optimiser of the localisation task."""

    def __init__(self, scenes: Scenes, *, seed: int) -> None:
        self._scenes = scenes
        self._rng = np.random.default_rng(seed)
        is_alone = np.isnan(scenes.others[:, 0, 0])
        self._alone = _HELD_OUT + np.flatnonzero(is_alone[_HELD_OUT:])
        self._several = _HELD_OUT + np.flatnonzero(~is_alone[_HELD_OUT:])
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
        hidden = torch.from_numpy(self._rng.random((_BATCH, 1)) < _STATE_HIDDEN)
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
        """int [_BATCH]: scenes of the batch, easy ones first."""
        first, last = _ALONE
        alone = self._rng.random(_BATCH) < first + (last - first) * min(1.0, 2 * share)
        return np.where(alone, self._rng.choice(self._alone, _BATCH), self._rng.choice(self._several, _BATCH))

    def evaluate(self) -> dict[str, float]:
        """On held-out scenes: horizontal error in mm for a lone cube and for the named one of several, and the share of
        those where the nearest cube to the answer is the named one."""
        rows = np.arange(min(_HELD_OUT, len(self._scenes)))
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
            phrase = _PHRASES[self._rng.integers(len(_PHRASES)) if training else 0]
            noun = _NOUNS[self._rng.integers(len(_NOUNS)) if training else 0]
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


def make_base(
    directory: Path, *, scenes: int, steps: int, seed: int, workers: int, console: Console
) -> dict[str, float]:
    """Render, train for ``steps`` updates, write the base into ``directory``; returns the last evaluation.

    The base is written at every report, so a run that is stopped leaves the best it had.
    """
    if scenes <= _HELD_OUT + _BATCH:
        raise ConfigError(f"--scenes is {scenes}; expected more than {_HELD_OUT + _BATCH}, of which some are held out")
    if steps < 1:
        raise ConfigError(f"--steps is {steps}; expected 1 or more")
    data = render_in_parallel(scenes, seed=seed, workers=workers, console=console)
    training = Pretraining(data, seed=seed)
    count = sum(parameter.numel() for parameter in training.model.parameters())
    console.print(f"training {count / 1e6:.2f} M parameters for {steps} steps on {len(data)} scenes")
    losses: list[float] = []
    result: dict[str, float] = {}
    with _progress(console) as progress:
        bar = progress.add_task("training", total=steps)
        while training.steps < steps:
            losses.append(training.step(training.steps / steps))
            progress.update(bar, completed=training.steps)
            if training.steps % _REPORT == 0 or training.steps == steps:
                result = training.evaluate()
                console.print(_line(training.steps, losses, result))
                losses.clear()
                training.save(directory)
    console.print(f"base model written to {directory}")
    return result


def _line(steps: int, losses: Sequence[float], result: dict[str, float]) -> str:
    return (
        f"step {steps}: loss {np.mean(losses):.3f}, lone cube {result['alone_mm']:.1f} mm, "
        f"named cube {result['named_mm']:.1f} mm, right one {result['named_right']:.0%}"
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
        console=console,
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m crane_x7_bringup.base", description="Make the pretrained base.")
    parser.add_argument(
        "--output", type=Path, default=BASE_DIRECTORY, help="folder of the model (default: %(default)s)"
    )
    parser.add_argument("--scenes", type=int, default=40000, help="rendered scenes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="updates (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of scenes and weights (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="rendering processes (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        make_base(
            arguments.output,
            scenes=arguments.scenes,
            steps=arguments.steps,
            seed=arguments.seed,
            workers=arguments.workers,
            console=Console(),
        )
    except USER_ERRORS as error:
        Console(stderr=True).print(f"error: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
