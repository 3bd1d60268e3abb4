"""A picture of recorded episodes: a row for each episode and camera, frames from its beginning to its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

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
    ok, png = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not ok:
        raise DataError(f"a picture of {sheet.shape[1]} x {sheet.shape[0]} pixels cannot be encoded as PNG")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png.tobytes())
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}") from error


def _rows(file: EpisodeFile) -> list[NDArray[np.uint8]]:
    steps = [file.step(int(i)) for i in np.linspace(0, len(file) - 1, FRAMES).round()]
    rows: list[NDArray[np.uint8]] = []
    for camera in file.cameras:
        frames = [_scaled(decode_jpeg(step.images[camera])) for step in steps]
        row = np.concatenate([np.pad(frame, ((0, 0), (0, _GAP), (0, 0))) for frame in frames], axis=1)
        caption = np.zeros((_CAPTION, row.shape[1], 3), np.uint8)
        # OpenCV's font has no letters but ASCII's.
        text = f"{file.path.stem} {camera}: {file.instruction}".encode("ascii", "replace").decode()
        cv2.putText(caption, text, (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        rows.append(np.concatenate([caption, row]))
    return rows


def _scaled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width, _ = image.shape
    return np.asarray(
        cv2.resize(image, (max(1, round(width * _HEIGHT / height)), _HEIGHT), interpolation=cv2.INTER_AREA), np.uint8
    )
