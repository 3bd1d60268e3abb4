"""The scenes that the base learns from, rendered in parallel."""

from __future__ import annotations

import math
import multiprocessing
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from crane_x7_bringup.base.progress import progress_bar
from crane_x7_bringup.base.shape import IMAGE_SIZE
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.transforms.image import resize
from lift.make import DEFAULT_CAMERAS
from lift.rendering import choose_gl
from lift.tasks.pick_up import COLOURS


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
    with multiprocessing.get_context("spawn").Pool(workers) as pool, progress_bar(console) as progress:
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
