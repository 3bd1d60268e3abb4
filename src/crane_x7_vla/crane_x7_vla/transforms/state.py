"""The measured joint state as a model sees it."""

from __future__ import annotations

import numpy as np

from crane_x7_vla.transforms.action import ValueRange, normalize


def normalize_state(state: np.ndarray, scale: ValueRange, *, clip: bool) -> np.ndarray:
    """float32 [S] rad to model units; ``clip`` holds them within [-1, 1], as OpenVLA-OFT does with its bounds."""
    values = normalize(state, scale)
    return np.clip(values, -1, 1) if clip else values
