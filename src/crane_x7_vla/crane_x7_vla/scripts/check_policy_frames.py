"""The frames that ``check_policy`` runs a model on: those of its training episodes, read as training reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crane_x7_vla.config.base import CameraConfig, VLAConfig
from crane_x7_vla.data.dataset import (
    EpisodeDataset,
    TrainingSample,
    choose_action_source,
    image_sizes,
    load_episodes,
    split_episodes,
)
from crane_x7_vla.data.statistics import DatasetStatistics, fingerprint_episodes
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.robot import robot_spec
from crane_x7_vla.training.loading import find_episodes, statistics_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """samples: training frames, spread over the episodes, with the recorded instructions. episode: every step of one.

    dataset: all of them. cameras: all that the episodes have. fingerprint: of the episodes, as in statistics.
    """

    samples: list[TrainingSample]
    episode: list[TrainingSample]
    name: str
    n_episodes: int
    dataset: EpisodeDataset
    cameras: tuple[CameraConfig, ...]
    fingerprint: str

    def statistics(self, config: VLAConfig) -> DatasetStatistics:
        """Those that training would compute of these episodes."""
        return statistics_of(config, self.dataset, fingerprint=self.fingerprint, n_episodes=self.n_episodes)


def read_frames(data: Path, configs: Sequence[VLAConfig], *, samples: int, episode: int) -> Frames:
    """Frames of the episodes that training with the first of ``configs`` takes from this folder, with all that a model
    run by any of them sees. Raises DataError, ConfigError.

    With the recorded instructions, whatever the configs say.
    """
    config, settings = configs[0], configs[0].data
    paths = find_episodes(data)
    if len(paths) > 1:
        paths, _ = split_episodes(
            paths, val_split=settings.val_split, seed=config.seed, train_split=settings.train_split
        )
    robot, used = robot_spec(config.robot), {camera.name: None for config in configs for camera in config.cameras}
    episodes = load_episodes(paths, robot=robot, cameras=list(used), control_hz=settings.control_hz)
    if episode >= len(episodes):
        raise ConfigError(f"--episode is {episode}, but there are {len(episodes)} training episodes, counted from 0")
    everywhere = [name for name in episodes[0].file.cameras if all(name in other.file.cameras for other in episodes)]
    sizes = image_sizes(episodes, everywhere)
    dataset = EpisodeDataset(
        episodes,
        horizon=config.action_horizon,
        action_source=choose_action_source(episodes, settings.action_source),
        image_size=sizes,
        history=max(config.history for config in configs),
    )
    start = sum(map(len, episodes[:episode]))
    numbers = np.linspace(0, len(dataset) - 1, min(samples, len(dataset))).round().astype(int)
    return Frames(
        samples=[dataset[int(number)] for number in numbers],
        episode=[dataset[number] for number in range(start, start + len(episodes[episode]))],
        name=episodes[episode].file.path.stem,
        n_episodes=len(episodes),
        dataset=dataset,
        cameras=tuple(CameraConfig(name=name, width=w, height=h) for name, (w, h) in sizes.items()),
        fingerprint=fingerprint_episodes(paths, data),
    )
