"""Images from camera to model input: resize, crop, colour, normalise. One path for training and inference.

The order is OpenVLA's: resize to the model's square, then (training) a random crop resized back and colour jitter, or
(inference) the centre crop of the same area, then uint8 again, then each tower's normalisation. Training with a crop
and running without one shifts the field of view by a tenth, which is why both are settings of one object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """crop_scale: area of the crop, 1 for none. brightness: largest shift of values in [0, 1]. contrast, saturation:
    largest relative change. hue: largest turn, as a share of the colour circle."""

    crop_scale: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclass(frozen=True, slots=True)
class ChannelNormalization:
    """mean, std: of each RGB channel, for values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# The published openvla-7b went through bfloat16 and states rounded values; they are read from its
# preprocessor_config.json. These serve models made from scratch.
IMAGENET = ChannelNormalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ChannelNormalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def model_image(
    image: np.ndarray,
    *,
    size: int,
    normalizations: Sequence[ChannelNormalization],
    augmentation: Augmentation | None,
    rng: np.random.Generator | None,
) -> np.ndarray:
    """uint8 [H, W, 3] RGB to float32 [3 * towers, size, size], the towers' channels stacked in their order.

    augmentation: None for none. rng: draws it (training); without one the matching centre crop is taken.
    """
    square = resize(image, size)
    if augmentation is not None:
        square = centre_crop(square, augmentation.crop_scale) if rng is None else augment(square, augmentation, rng)
    unit = square.astype(np.float32) / np.float32(255)
    towers = [(unit - _float32(tower.mean)) / _float32(tower.std) for tower in normalizations]
    return np.ascontiguousarray(np.concatenate(towers, axis=2).transpose(2, 0, 1))


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """To a square, whatever the aspect ("resize-naive"): PIL's bicubic with antialiasing, as openvla's processor."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def centre_crop(image: np.ndarray, scale: float) -> np.ndarray:
    """The middle ``scale`` of the area, resized back; uint8 in and out (openvla-oft: openvla_utils.py:81-155)."""
    if scale >= 1:
        return image
    side = math.sqrt(scale)
    return to_uint8(crop_and_resize(to_unit(image), (1 - side) / 2, (1 - side) / 2, side))


def augment(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Random crop, brightness, contrast, saturation and hue in this order (openvla: datasets.py:121-136); uint8."""
    pixels = to_unit(image)
    if augmentation.crop_scale < 1:
        side = math.sqrt(augmentation.crop_scale)
        top, left = rng.uniform(0, 1 - side, size=2)
        pixels = crop_and_resize(pixels, top, left, side)
    shift, contrast, saturation, hue = rng.uniform(-1, 1, size=4)
    if augmentation.brightness > 0:
        pixels = np.clip(pixels + np.float32(shift * augmentation.brightness), 0, 1)
    if augmentation.contrast > 0:
        mean = pixels.mean(axis=(0, 1), keepdims=True)
        pixels = np.clip((pixels - mean) * np.float32(1 + contrast * augmentation.contrast) + mean, 0, 1)
    if augmentation.saturation > 0 or augmentation.hue > 0:
        pixels = turn_colours(pixels, saturation=1 + saturation * augmentation.saturation, hue=hue * augmentation.hue)
    return to_uint8(pixels)


def crop_and_resize(pixels: np.ndarray, top: float, left: float, side: float) -> np.ndarray:
    """A square part of a square image, resized back: bilinear, corners aligned, no antialiasing, as
    tf.image.crop_and_resize. pixels: float32 [S, S, 3]. top, left, side: shares of the image's side."""
    rows = bilinear_weights(len(pixels), top, side)
    columns = bilinear_weights(len(pixels), left, side)
    return columns @ np.tensordot(rows, pixels, axes=1)


def turn_colours(pixels: np.ndarray, *, saturation: float, hue: float) -> np.ndarray:
    """Scale the saturation and turn the hue in HSV. pixels: float32 [H, W, 3] in [0, 1]. hue: share of the circle."""
    value, low = pixels.max(axis=2), pixels.min(axis=2)
    chroma = value - low
    safe = np.where(chroma > 0, chroma, 1)
    red, green, blue = np.moveaxis(pixels, 2, 0)
    angle = np.where(
        value == red,
        ((green - blue) / safe) % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    angle = (angle + np.float32(6 * hue)) % 6
    strength = np.clip(chroma / np.where(value > 0, value, 1) * np.float32(saturation), 0, 1)
    # f(n) = V - V S max(0, min(k, 4 - k, 1)) with k = (n + H) mod 6: the usual closed form of HSV to RGB.
    turned = (_float32((5, 3, 1)) + angle[..., None]) % 6
    part = np.clip(np.minimum(turned, 4 - turned), 0, 1)
    return (value[..., None] * (1 - strength[..., None] * part)).astype(np.float32)


def to_unit(image: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] to uint8, scaled by 255.5 and cut off as tf.image.convert_image_dtype does."""
    return np.clip(pixels * np.float32(255.5), 0, 255).astype(np.uint8)


def bilinear_weights(size: int, start: float, side: float) -> np.ndarray:
    """float32 [size, size]: bilinear weights of the source pixels for each target pixel along one axis."""
    places = (start + side * np.arange(size) / (size - 1)) * (size - 1)
    low = np.clip(np.floor(places).astype(int), 0, size - 2)
    share = places - low
    weights = np.zeros((size, size), np.float32)
    weights[np.arange(size), low] = 1 - share
    weights[np.arange(size), low + 1] = share
    return weights


def _float32(values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, dtype=np.float32)
