"""Recorded = live: an episode played through the node's own conversions is encoded as the trainer encodes it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crane_x7_vla.backends import BACKENDS, backend_class, config_class
from crane_x7_vla.data.dataset import EpisodeDataset, load_episodes
from crane_x7_vla.data.episode import decode_jpeg, list_episodes, read_episode
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.nodes.messages import joint_state_message, rgb_to_image, to_stamp
from crane_x7_vla.nodes.observing import JOINT_STATES, ObservationBuffer
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
