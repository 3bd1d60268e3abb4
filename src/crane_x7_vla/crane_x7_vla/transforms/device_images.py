"""``image.model_image`` for inference, on the device of a model: no image is touched by the CPU.

Resizing gives PIL's numbers exactly. Cropping is computed in float64, where numpy uses float32, so that a value may be
cut off to the neighbouring one of the 256 levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from crane_x7_vla.transforms.image import ChannelNormalization, bilinear_weights

_BITS = 22  # PIL's fixed point: 32 bits less 8 of a pixel and 2 for what the bicubic filter overshoots
_REACH = 2.0  # of the bicubic filter, in pixels of the smaller image


class DeviceImages:
    """Resize, centre crop and normalisation of ``model_image``. crop_scale: area of the crop, 1 for none.

    Constants are made on the first call for images of a size, later calls copy nothing to the device.
    """

    def __init__(self, *, size: int, normalizations: Sequence[ChannelNormalization], crop_scale: float) -> None:
        self._size = size
        self._towers = [(tower.mean, tower.std) for tower in normalizations]
        side = math.sqrt(crop_scale)
        self._crop = None if crop_scale >= 1 else bilinear_weights(size, (1 - side) / 2, side)
        self._known: dict[tuple[int, int, torch.device], tuple[Tensor, ...]] = {}

    def __call__(self, images: UInt8[Tensor, "b n h w 3"]) -> Float[Tensor, "b channels s s"]:
        """The channels of all towers of all n images stacked, float32."""
        key = (images.shape[2], images.shape[3], images.device)
        if key not in self._known:
            self._known[key] = self._constants(*key)
        rows, columns, crop, mean, std = self._known[key]
        pixels = images.permute(0, 1, 4, 2, 3).double()
        pixels = _fixed_point(rows @ _fixed_point(pixels @ columns.T))
        if self._crop is not None:
            pixels = ((crop @ (pixels / 255) @ crop.T) * 255.5).clamp(0, 255).floor()
        unit = pixels.float() / 255
        return ((unit[:, :, None] - mean) / std).flatten(1, 3)

    def _constants(self, height: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
        rows, columns = (bicubic_weights(source, self._size) for source in (height, width))
        crop = np.zeros((0, 0)) if self._crop is None else self._crop.astype(np.float64)
        # [towers, 3, 1, 1] each
        mean, std = (np.array(values, np.float32)[..., None, None] for values in zip(*self._towers, strict=True))
        return tuple(torch.from_numpy(value).to(device) for value in (rows, columns, crop, mean, std))


def bicubic_weights(source: int, target: int) -> np.ndarray:
    """float64 [target, source]: PIL's bicubic filter with antialiasing along one axis, integers in units of 2**-22
    (Pillow's Resample.c: precompute_coeffs, normalize_coeffs_8bpc)."""
    scale = source / target
    widening = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale
    reach = _REACH * widening
    places = np.arange(source)
    first = np.maximum((centres - reach + 0.5).astype(int), 0)
    stop = np.minimum((centres + reach + 0.5).astype(int), source)
    weights = _bicubic((places - centres + 0.5) / widening)
    weights[(places < first) | (places >= stop)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return np.trunc(weights * 2**_BITS + np.copysign(0.5, weights))


def _bicubic(x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _fixed_point(sums: Tensor) -> Tensor:
    """Weighted sums, which float64 holds exactly, to whole pixel values."""
    return ((sums + 2 ** (_BITS - 1)) / 2**_BITS).floor().clamp(0, 255)
