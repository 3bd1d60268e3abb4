"""A picture of recorded episodes: a row for each episode and camera, frames from its beginning to its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from crane_x7_vla.data.episode import EpisodeFile, decode_jpeg
from crane_x7_vla.errors import DataError

FRAMES = 8
MAX_EPISODES = 24
_HEIGHT = 96
_GAP = 2
_CAPTION = 16


def write_contact_sheet(paths: Sequence[Path], target: Path) -> None:
    """PNG of at most ``MAX_EPISODES`` episodes, spread over ``paths``. Raises DataError when it cannot be written."""
    chosen = [paths[int(i)] for i in np.unique(np.linspace(0, len(paths) - 1, min(len(paths), MAX_EPISODES)).round())]
    rows = [row for path in chosen for row in _rows(EpisodeFile(path))]
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0))) for row in rows])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(target, "PNG")
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}") from error


def _rows(file: EpisodeFile) -> list[NDArray[np.uint8]]:
    steps = [file.step(int(i)) for i in np.linspace(0, len(file) - 1, FRAMES).round()]
    rows: list[NDArray[np.uint8]] = []
    for camera in file.cameras:
        frames = [_scaled(decode_jpeg(step.images[camera])) for step in steps]
        row = np.concatenate([np.pad(frame, ((0, 0), (0, _GAP), (0, 0))) for frame in frames], axis=1)
        caption = Image.new("RGB", (row.shape[1], _CAPTION))
        # Pillow's built-in font has no letters but those of Latin-1.
        text = f"{file.path.stem} {camera}: {file.instruction}".encode("latin-1", "replace").decode("latin-1")
        ImageDraw.Draw(caption).text((2, 2), text, fill="white")
        rows.append(np.concatenate([np.asarray(caption), row]))
    return rows


def _scaled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width, _ = image.shape
    size = (max(1, round(width * _HEIGHT / height)), _HEIGHT)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
