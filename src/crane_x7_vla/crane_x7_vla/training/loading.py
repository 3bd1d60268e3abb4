"""From a config to what the trainer reads: episodes, their split and statistics, and loaders of encoded batches."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from crane_x7_vla.backends.base import Batch, Processor, Sample
from crane_x7_vla.config.base import DataConfig, VLAConfig
from crane_x7_vla.data.dataset import (
    EpisodeDataset,
    TrainingSample,
    choose_action_source,
    image_sizes,
    load_episodes,
    split_episodes,
)
from crane_x7_vla.data.episode import list_episodes
from crane_x7_vla.data.sampler import Draw, StepSampler
from crane_x7_vla.data.statistics import (
    DatasetStatistics,
    compute_statistics,
    fingerprint_episodes,
    load_statistics,
)
from crane_x7_vla.errors import ConfigError, DataError
from crane_x7_vla.robot import RobotSpec, robot_spec
from crane_x7_vla.transforms.action import action_rows
from crane_x7_vla.types import Observation

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=VLAConfig)
MAX_AUTOMATIC_WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSplit:
    """Paths under the data root, as they are written into the run. fingerprint: of the training episodes."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """config: with the camera sizes and the action source of the data filled in, as the checkpoint keeps it."""

    config: VLAConfig
    robot: RobotSpec
    train: EpisodeDataset
    val: EpisodeDataset
    statistics: DatasetStatistics
    split: EpisodeSplit
    num_workers: int


def prepare_data(config: VLAConfig, *, images: bool = True) -> TrainingData:
    """Find, check and split the episodes, and compute the statistics of the training ones. Raises DataError.

    images: whether samples hold any, and the past ones that the model sees.
    """
    data, robot = config.data, robot_spec(config.robot)
    root = Path(data.data_root)
    paths = find_episodes(root)
    train_paths, val_paths = split_episodes(
        paths, val_split=data.val_split, seed=config.seed, train_split=data.train_split
    )
    num_workers = choose_workers(data, config.training.device)
    cache = data.cache_gb * 1e9 if num_workers == 0 else 0.0
    cameras = [camera.name for camera in config.cameras] if images else []
    episodes = load_episodes(
        [*train_paths, *val_paths],
        robot=robot,
        cameras=cameras,
        control_hz=data.control_hz,
        instruction=data.instruction,
        cache_bytes=cache,
        camera_flags=config.camera_flags,
    )
    source = choose_action_source(episodes, data.action_source)
    logger.info("actions are the %s", "commanded joint targets" if source == "commanded" else "next measured states")
    config = fill_in(config, sizes=image_sizes(episodes, cameras), action_source=source)
    train, val = (
        EpisodeDataset(
            part,
            horizon=config.action_horizon,
            action_source=source,
            image_size=camera_sizes(config) if images else {},
            history=config.history if images else 0,
        )
        for part in (episodes[: len(train_paths)], episodes[len(train_paths) :])
    )
    logger.info(
        "%d episodes under %s: %d for training (%d steps), %d held out (%d steps)",
        len(paths), root, len(train_paths), len(train), len(val_paths), len(val),
    )  # fmt: skip
    if images and config.history >= train.longest:
        logger.warning(
            "the model sees %d frames before the newest, but the longest training episode has %d steps; choose a "
            "shorter history", config.history, train.longest,
        )  # fmt: skip
    fingerprint = fingerprint_episodes(train_paths, root)
    return TrainingData(
        config=config,
        robot=robot,
        train=train,
        val=val,
        statistics=_statistics(config, train, robot=robot, fingerprint=fingerprint, n_episodes=len(train_paths)),
        split=EpisodeSplit(
            train=tuple(path.relative_to(root).as_posix() for path in train_paths),
            val=tuple(path.relative_to(root).as_posix() for path in val_paths),
            fingerprint=fingerprint,
        ),
        num_workers=num_workers,
    )


def find_episodes(root: Path) -> list[Path]:
    """Whole episodes under ``root``, which must be a folder. Raises DataError that says how to record some."""
    if root.is_file():
        raise DataError(f"{root} is a file; expected the folder above the episodes, such as {root.parent.parent}")
    return list_episodes(root)


def fill_in(config: T, *, sizes: dict[str, tuple[int, int]], action_source: str) -> T:
    """The config with what the data say in place of '0' and 'auto'. Raises DataError where a camera's size differs.

    sizes: {camera: (width, height)} of the cameras that the model is fed with.
    """
    cameras = list(config.data.cameras)
    for index, camera in enumerate(cameras):
        if camera.name not in sizes:
            continue
        width, height = sizes[camera.name]
        if (camera.width or width, camera.height or height) != (width, height):
            raise DataError(
                f"camera '{camera.name}' is {width}x{height} in the data, "
                f"{camera.width or width}x{camera.height or height} in the config; "
                "set its width and height to the former, or to 0"
            )
        cameras[index] = replace(camera, width=width, height=height)
    return replace(config, data=replace(config.data, cameras=tuple(cameras), action_source=action_source))


def camera_sizes(config: VLAConfig) -> dict[str, tuple[int, int]]:
    """{camera: (width, height)} of the cameras the model is fed with, for a config of ``fill_in``."""
    return {camera.name: (camera.width, camera.height) for camera in config.cameras}


def choose_workers(data: DataConfig, device: str) -> int:
    """Processes that load data: as configured, else none on a CPU, which training keeps busy, and a few for a GPU."""
    if data.num_workers is not None:
        return data.num_workers
    return 0 if device == "cpu" else min(MAX_AUTOMATIC_WORKERS, max(1, (os.cpu_count() or 1) - 1))


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """batch: collated samples. observations: without images. actions: float32 [b, T, A] rad. is_pad: bool [b, T].

    is_start: bool [b], steps at the start of an episode.
    """

    batch: Batch
    observations: list[Observation]
    actions: np.ndarray
    is_pad: np.ndarray
    is_start: np.ndarray


class _Encoded(Dataset[Sample]):
    """Encoded training samples by ``Draw``; the draw's number seeds the augmentation."""

    def __init__(self, dataset: EpisodeDataset, processor: Processor, seed: int) -> None:
        self._dataset, self._processor, self._seed = dataset, processor, seed

    def __getitem__(self, draw: Draw) -> Sample:
        index, number = draw
        sample = self._dataset[index]
        rng = np.random.default_rng((self._seed, number))
        return self._processor.encode(sample.observation, sample.actions, is_pad=sample.is_pad, rng=rng)


class _ForEvaluation(Dataset[tuple[TrainingSample, bool]]):
    """Some steps of a data set, each with whether it is at the start of its episode."""

    def __init__(self, dataset: EpisodeDataset, indices: np.ndarray, starts: np.ndarray) -> None:
        self._dataset, self._indices, self._starts = dataset, indices, starts

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: int) -> tuple[TrainingSample, bool]:
        index = int(self._indices[number])
        return self._dataset[index], bool(self._starts[index])


class _EvaluationCollate:
    def __init__(self, processor: Processor) -> None:
        self._processor = processor

    def __call__(self, items: Sequence[tuple[TrainingSample, bool]]) -> EvaluationBatch:
        samples = [sample for sample, _ in items]
        encoded = [self._processor.encode(s.observation, s.actions, is_pad=s.is_pad) for s in samples]
        return EvaluationBatch(
            batch=self._processor.collate(encoded),
            observations=[replace(sample.observation, images={}, past=()) for sample in samples],
            actions=np.stack([sample.actions for sample in samples]),
            is_pad=np.stack([sample.is_pad for sample in samples]),
            is_start=np.array([is_start for _, is_start in items]),
        )


def training_batches(
    data: TrainingData, processor: Processor, *, first_batch: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Endless collated batches of this process, from batch ``first_batch`` of the run."""
    config = data.config
    sampler = StepSampler(
        len(data.train),
        batch_size=config.training.batch_size,
        seed=config.seed,
        shuffle=config.data.shuffle,
        starts=data.train.starts(config.data.start_steps),
        start_fraction=config.data.start_fraction,
        first_batch=first_batch,
        rank=rank,
        world=world,
    )
    loader = DataLoader(
        _Encoded(data.train, processor, config.seed),
        batch_sampler=sampler,
        collate_fn=processor.collate,
        **_worker_settings(data.num_workers, config.training.device),
    )
    return iter(loader)


def evaluation_batches(
    dataset: EpisodeDataset,
    processor: Processor,
    *,
    config: VLAConfig,
    samples: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterable[EvaluationBatch]:
    """Batches of ``samples`` steps spread evenly over the data set (0: all of them), in order, not augmented.

    rank, world: this process takes every world-th of them. May be iterated again and again.
    """
    count = min(samples or len(dataset), len(dataset))
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(int)[rank::world]
    loader = DataLoader(
        _ForEvaluation(dataset, indices, dataset.starts(config.data.start_steps)),
        batch_size=config.training.batch_size,
        collate_fn=_EvaluationCollate(processor),
        **_worker_settings(num_workers, config.training.device),
    )
    return cast(Iterable[EvaluationBatch], loader)


def _worker_settings(num_workers: int, device: str) -> dict[str, Any]:
    # A generator of its own: a loader without one takes a number of the training's at every start.
    settings: dict[str, Any] = {
        "num_workers": num_workers,
        "pin_memory": device != "cpu",
        "generator": torch.Generator().manual_seed(0),
    }
    if num_workers:
        # Forked children of a process that has threads and a GPU context can hang; spawned ones start clean.
        settings |= {"multiprocessing_context": "spawn", "persistent_workers": True, "worker_init_fn": _start_worker}
    return settings


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the trainer decides when to stop


def _statistics(
    config: VLAConfig, train: EpisodeDataset, *, robot: RobotSpec, fingerprint: str, n_episodes: int
) -> DatasetStatistics:
    settings = f"{config.action_form} {config.data.action_source} {config.action_horizon}"
    fingerprint = f"{fingerprint} {settings}"
    if config.data.statistics_path is not None:
        path = Path(config.data.statistics_path)
        statistics = load_statistics(path)
        if statistics.action.size != robot.size or statistics.state.size != robot.size:
            raise DataError(
                f"{path} describes {statistics.action.size} joints, {robot.name} has {robot.size}; compute it again"
            )
        if statistics.fingerprint != fingerprint:
            raise DataError(
                f"{path} was computed from other episodes or for other actions than this run's ({settings}); "
                f"compute it again with: python -m crane_x7_vla.scripts.compute_crane_x7_norm_stats {config.backend} "
                f"--data-root {config.data.data_root} --output {path}"
            )
        return statistics
    return statistics_of(config, train, fingerprint=fingerprint, n_episodes=n_episodes)


def statistics_of(config: VLAConfig, train: EpisodeDataset, *, fingerprint: str, n_episodes: int) -> DatasetStatistics:
    """Statistics of states and actions, these in the form and over the horizon of ``config``."""
    robot = robot_spec(config.robot)
    states: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    for state, action in train.trajectories():
        states.append(state)
        actions.append(
            action_rows(
                state,
                action,
                gripper_index=robot.gripper_index,
                horizon=config.action_horizon,
                action_form=config.action_form,
            )
        )
    if not states:
        raise ConfigError("no training episodes")
    return compute_statistics(
        np.concatenate(states), np.concatenate(actions), num_trajectories=n_episodes, fingerprint=fingerprint
    )
