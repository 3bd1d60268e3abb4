"""Recorded = live: an episode played through the node's own conversions is encoded as the trainer encodes it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crane_x7_vla.backends import BACKENDS, backend_class, config_class
from crane_x7_vla.data.dataset import EpisodeDataset, load_episodes
from crane_x7_vla.data.episode import decode_jpeg, encode_jpeg, list_episodes, read_episode
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.nodes.messages import joint_state_message, rgb_to_image, to_stamp
from crane_x7_vla.nodes.observing import ObservationBuffer
from crane_x7_vla.protocol import JOINT_STATES
from crane_x7_vla.robot import CRANE_X7

CAMERAS = ("primary", "wrist")
SIZE = (32, 24)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_recorded_episode_played_to_the_node_is_encoded_as_in_training(
    name: str, tmp_path: Path, record_episodes: Callable[..., Path], tiny_statistics: DatasetStatistics
) -> None:
    (path,) = list_episodes(record_episodes(tmp_path, 1, cameras=CAMERAS, size=SIZE))
    episode = read_episode(path)
    family: Any = config_class(name)
    processor = backend_class(name)(family.tiny(), robot=CRANE_X7, statistics=tiny_statistics).processor
    trained_on = EpisodeDataset(
        load_episodes([path], robot=CRANE_X7, cameras=CAMERAS, control_hz=10.0),
        horizon=1,
        action_source="commanded",
        image_size=dict.fromkeys(CAMERAS, SIZE),
    )
    buffer = ObservationBuffer(CRANE_X7, CAMERAS, dt=0.1)
    shuffled = random.Random(0)
    for step, sample in enumerate(trained_on):
        stamp = round(episode.stamp[step] * 1e9)
        for camera in CAMERAS:
            buffer.add(camera, rgb_to_image(decode_jpeg(episode.images[camera][step]), stamp, camera))
        joints = joint_state_message(CRANE_X7, stamp, episode.state[step], 0 * episode.state[step])
        order = shuffled.sample(range(CRANE_X7.size), CRANE_X7.size)
        names, positions = list(joints.name), list(joints.position)
        joints.name, joints.position = [names[i] for i in order], [positions[i] for i in order]
        joints.header.stamp = to_stamp(stamp)
        buffer.add(JOINT_STATES, joints)

        seen = buffer.observe(stamp, instruction=episode.instruction, commanded=sample.observation.commanded)
        live, recorded = processor.encode(seen), processor.encode(sample.observation)
        assert live.keys() == recorded.keys()
        for key, value in live.items():
            assert torch.equal(value, recorded[key]), f"{key} at step {step}"
    assert len(trained_on) > 3


def scene(seed: int) -> np.ndarray:
    """uint8 [H, W, 3] RGB: a table in soft light with a red cube, and a sensor's noise."""
    width, height = SIZE
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([80 + 100 * x / width, 90 + 80 * y / height, np.full((height, width), 70.0)], axis=-1)
    image += rng.normal(0, 3, image.shape)
    image[8:14, 10 + seed : 18 + seed] = (200, 30, 30)
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_cameras_own_picture_differs_from_the_recorded_one_by_what_jpeg_costs(
    name: str, tiny_statistics: DatasetStatistics
) -> None:
    """Training sees pictures through JPEG, the arm without: the model's input differs by a few grey levels, no more."""
    family: Any = config_class(name)
    processor = backend_class(name)(family.tiny(), robot=CRANE_X7, statistics=tiny_statistics).processor
    home = np.array(CRANE_X7.home, np.float32)

    def encode(pictures: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        buffer = ObservationBuffer(CRANE_X7, CAMERAS, dt=0.1)
        for camera, picture in pictures.items():
            buffer.add(camera, rgb_to_image(picture, 0, camera))
        buffer.add(JOINT_STATES, joint_state_message(CRANE_X7, 0, home, 0 * home))
        return processor.encode(buffer.observe(0, instruction="pick up the red cube", commanded=home))

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        """Mean difference in standard deviations of the input."""
        return float((a - b).abs().mean() / a.std())

    raw = {camera: scene(seed) for seed, camera in enumerate(CAMERAS)}
    live = encode(raw)
    recorded = encode({camera: decode_jpeg(encode_jpeg(picture)) for camera, picture in raw.items()})
    swapped = encode({camera: picture[..., ::-1] for camera, picture in raw.items()})
    assert live.keys() == recorded.keys()
    differing = [key for key, value in live.items() if not torch.equal(value, recorded[key])]
    assert differing == ["pixel_values"]
    assert distance(live["pixel_values"], recorded["pixel_values"]) < 0.08
    assert float((live["pixel_values"] - recorded["pixel_values"]).abs().max() / live["pixel_values"].std()) < 0.6
    assert distance(live["pixel_values"], swapped["pixel_values"]) > 0.5, "what the bound would catch"
