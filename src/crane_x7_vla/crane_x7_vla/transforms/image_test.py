"""Images on their way to the model."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf  # before any test draws by Mesa, whose LLVM it would take for its own
from PIL import Image

from crane_x7_vla.transforms.image import (
    HALF,
    IMAGENET,
    Augmentation,
    augment,
    centre_crop,
    crop_and_resize,
    model_image,
    resize,
    to_uint8,
    to_unit,
    turn_colours,
)

NOTHING = Augmentation(crop_scale=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
OPENVLA = Augmentation(crop_scale=0.9, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)


@pytest.fixture
def photo() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((80, 60), Image.Resampling.BILINEAR))


def test_a_pure_red_image_is_red_at_the_models_input() -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 255
    pixels = model_image(red, size=32, normalizations=(IMAGENET, HALF), augmentation=OPENVLA, rng=None)
    assert pixels.shape == (6, 32, 32)
    expected = [(value - m) / s for n in (IMAGENET, HALF) for value, m, s in zip((1, 0, 0), n.mean, n.std, strict=True)]
    np.testing.assert_allclose(pixels, np.broadcast_to(np.reshape(expected, (6, 1, 1)), pixels.shape), atol=1e-6)


def test_resizing_ignores_the_aspect_and_removes_detail_instead_of_aliasing_it() -> None:
    stripes = np.zeros((200, 400, 3), np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: without antialiasing the result is stripes or a flat extreme
    small = resize(stripes, 50)
    assert small.shape == (50, 50, 3)
    assert np.abs(small[:, 5:-5].astype(int) - 127).max() <= 2


def test_an_image_of_the_models_size_is_not_touched(photo: np.ndarray) -> None:
    square = resize(photo, 32)
    assert resize(square, 32) is square


def test_crop_and_resize_equals_tensorflows(photo: np.ndarray) -> None:
    pixels = to_unit(resize(photo, 40))
    top, left, side = 0.03, 0.01, math.sqrt(0.9)
    boxes = [[top, left, top + side, left + side]]
    expected = tf.image.crop_and_resize(pixels[None], boxes, [0], (40, 40)).numpy()[0]
    np.testing.assert_allclose(crop_and_resize(pixels, top, left, side), expected, atol=1e-5)


def test_saturation_and_hue_equal_tensorflows(photo: np.ndarray) -> None:
    pixels = to_unit(photo)
    np.testing.assert_allclose(
        turn_colours(pixels, saturation=1.2, hue=0.0), tf.image.adjust_saturation(pixels, 1.2).numpy(), atol=1e-5
    )
    np.testing.assert_allclose(
        turn_colours(pixels, saturation=1.0, hue=-0.05), tf.image.adjust_hue(pixels, -0.05).numpy(), atol=1e-5
    )


def test_the_centre_crop_shows_the_same_area_as_the_random_ones() -> None:
    """So an object in the middle has the same size in training and at inference."""
    square = np.zeros((64, 64, 3), np.uint8)
    square[20:44, 20:44] = 255
    crops = dataclasses.replace(NOTHING, crop_scale=0.81)
    rng = np.random.default_rng(0)
    random = np.mean([to_unit(augment(square, crops, rng))[..., 0].sum() for _ in range(50)])
    centre = to_unit(centre_crop(square, 0.81))[..., 0].sum()
    assert centre == pytest.approx((24 / 0.9) ** 2, rel=0.03)
    assert random == pytest.approx(centre, rel=0.03)


def test_without_any_change_augmentation_keeps_the_image(photo: np.ndarray) -> None:
    np.testing.assert_array_equal(augment(photo, NOTHING, np.random.default_rng(0)), photo)
    np.testing.assert_array_equal(centre_crop(photo, 1.0), photo)


def test_the_same_seed_draws_the_same_image_and_another_one_does_not(photo: np.ndarray) -> None:
    square = resize(photo, 48)
    first, again, other = (augment(square, OPENVLA, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_every_byte_survives_the_way_to_floats_and_back() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(to_uint8(to_unit(values)), values)
