"""What the device makes of an image is what the processors make of it on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from crane_x7_vla.transforms.device_images import DeviceImages
from crane_x7_vla.transforms.image import HALF, IMAGENET, Augmentation, ChannelNormalization, model_image

torch.set_num_threads(1)
LEVELS = ChannelNormalization((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))


def photos(height: int, width: int) -> np.ndarray:
    """uint8 [2, 3, H, W, 3]: smooth, with the extremes that make a bicubic filter overshoot."""
    rng = np.random.default_rng(0)
    coarse = [rng.choice([0, 30, 128, 255], (9, 11, 3)).astype(np.uint8) for _ in range(6)]
    images = [Image.fromarray(c).resize((width, height)) for c in coarse]
    return np.stack([np.asarray(image) for image in images]).reshape(2, 3, height, width, 3)


def expected(images: np.ndarray, size: int, crop_scale: float, *towers: ChannelNormalization) -> np.ndarray:
    augmentation = Augmentation(crop_scale=crop_scale, brightness=0, contrast=0, saturation=0, hue=0)
    return np.stack(
        [
            np.concatenate(
                [
                    model_image(image, size=size, normalizations=towers, augmentation=augmentation, rng=None)
                    for image in sample
                ]
            )
            for sample in images
        ]
    )


@pytest.mark.parametrize("shape", [(60, 80), (48, 48), (33, 224), (20, 24)])
def test_resizing_is_pils_to_the_last_bit(shape: tuple[int, int]) -> None:
    images = photos(*shape)
    found = DeviceImages(size=48, normalizations=(IMAGENET, HALF), crop_scale=1.0)(torch.from_numpy(images))
    np.testing.assert_array_equal(found.numpy(), expected(images, 48, 1.0, IMAGENET, HALF))


def test_cropping_is_numpys_but_for_rounding() -> None:
    images = photos(60, 80)
    found = DeviceImages(size=48, normalizations=(LEVELS, HALF), crop_scale=0.9)(torch.from_numpy(images)).numpy()
    levels = np.abs(found - expected(images, 48, 0.9, LEVELS, HALF)).reshape(2, 3, 2, -1)[:, :, 0]
    assert levels.max() <= 1.001
    assert (levels > 0.5).mean() < 1e-3
