"""Training samples from recorded episodes: any step by its number, with the chunk of actions that follows it.

Nothing here shuffles images: ``StepSampler`` draws numbers, and only the steps drawn are read and decoded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from crane_x7_vla.data.episode import EpisodeFile, decode_jpeg, jpeg_size
from crane_x7_vla.errors import DataError
from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.types import Observation

logger = logging.getLogger(__name__)

# How far the median period of stamps may be from the control period: timers drift, half a step is another rate.
_RATE_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEpisode:
    """An episode's numbers in memory, and its images where they fit.

    state, action: float32 [N, S] rad. commanded: float32 [N, S] rad or None. stamp: float64 [N] s.
    images: one {camera: JPEG} per step, or None to read them from ``file`` when they are asked for.
    """

    file: EpisodeFile
    state: np.ndarray
    action: np.ndarray
    commanded: np.ndarray | None
    stamp: np.ndarray
    instruction: str
    images: tuple[Mapping[str, bytes], ...] | None

    def __len__(self) -> int:
        return len(self.state)

    def jpegs(self, index: int) -> Mapping[str, bytes]:
        """{camera: JPEG} of one step."""
        return self.file.step(index).images if self.images is None else self.images[index]


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One step. actions: float32 [T, A] rad, absolute. is_pad: bool [T], rows past the end of the episode."""

    observation: Observation
    actions: np.ndarray
    is_pad: np.ndarray


def load_episodes(
    paths: Sequence[Path],
    *,
    robot: RobotSpec,
    cameras: Sequence[str],
    control_hz: float,
    instruction: str | None = None,
    cache_bytes: float = 0,
    camera_flags: Callable[[Sequence[str]], str] | None = None,
) -> list[LoadedEpisode]:
    """Read the numbers of every episode, and keep JPEGs of ``cameras`` up to ``cache_bytes`` in total.

    instruction: replaces the recorded ones. camera_flags: what to type for some cameras alone, None where a model needs
    all ``cameras``. Raises DataError naming the file where an episode is damaged, is of another
    robot, lacks a camera, or was recorded at another rate than ``control_hz``.
    """
    left = cache_bytes
    episodes: list[LoadedEpisode] = []
    without_rate: list[Path] = []
    for path in paths:
        file = EpisodeFile(path)
        _check_cameras(file, cameras, camera_flags)
        _check_metadata(file, robot, control_hz)
        if file.hz is None and not file.has_stamps:
            without_rate.append(path)
        rows: list[tuple[np.ndarray, np.ndarray, np.ndarray | None, float]] = []
        kept: list[Mapping[str, bytes]] | None = []
        for step in file.steps():
            if step.state.size != robot.size:
                raise DataError(
                    f"{path} has {step.state.size} joints, {robot.name} has {robot.size}; "
                    "use the episodes of one robot, or set robot"
                )
            rows.append((step.state, step.action, step.commanded, step.stamp))
            if kept is not None:
                images = {camera: step.images[camera] for camera in cameras}
                left -= sum(map(len, images.values()))
                kept.append(images)
                if left < 0:
                    kept = None
        state, action, commanded, stamp = zip(*rows, strict=True)
        if file.hz is None and file.has_stamps and len(rows) > 1:
            _check_stamps(path, np.array(stamp, dtype=np.float64), control_hz)
        targets = [row for row in commanded if row is not None]
        episodes.append(
            LoadedEpisode(
                file=file,
                state=np.stack(state),
                action=np.stack(action),
                commanded=np.stack(targets) if len(targets) == len(rows) else None,
                stamp=np.array(stamp, dtype=np.float64),
                instruction=file.instruction if instruction is None else instruction,
                images=None if kept is None else tuple(kept),
            )
        )
    if without_rate:
        logger.warning(
            "%d episodes do not say their rate, such as %s; taken as %g Hz (data.control_hz)",
            len(without_rate),
            without_rate[0],
            control_hz,
        )
    return episodes


def image_sizes(episodes: Sequence[LoadedEpisode], cameras: Sequence[str]) -> dict[str, tuple[int, int]]:
    """{camera: (width, height)} of the first step of each episode; raises DataError where episodes differ."""
    sizes: dict[str, tuple[int, int]] = {}
    for episode in episodes:
        jpegs = episode.jpegs(0)
        for camera in cameras:
            height, width = jpeg_size(jpegs[camera])
            if sizes.setdefault(camera, (width, height)) != (width, height):
                raise DataError(
                    f"camera '{camera}' is {width}x{height} in {episode.file.path} and {sizes[camera][0]}x"
                    f"{sizes[camera][1]} in {episodes[0].file.path}; train on recordings of one size"
                )
    return sizes


def choose_action_source(episodes: Sequence[LoadedEpisode], action_source: str) -> str:
    """'commanded' or 'next_state': what ``auto`` means for these episodes, and whether they have what is asked for."""
    lacking = [episode for episode in episodes if episode.commanded is None]
    if action_source == "commanded" and lacking:
        raise DataError(
            f"action_source is commanded, but {len(lacking)} of {len(episodes)} episodes have no action/commanded, "
            f"such as {lacking[0].file.path}; record them again or use --action-source next_state"
        )
    if action_source != "auto":
        return action_source
    if lacking and len(lacking) < len(episodes):
        logger.warning(
            "%d of %d episodes have no action/commanded, such as %s: training on next states",
            len(lacking),
            len(episodes),
            lacking[0].file.path,
        )
    return "next_state" if lacking else "commanded"


def split_episodes(
    paths: Sequence[Path], *, val_split: float, seed: int, train_split: float | None = None
) -> tuple[list[Path], list[Path]]:
    """(training, held-out) episodes: whole episodes, since neighbouring steps of one look alike.

    Depends on the number of episodes, the shares and the seed alone; at least one is held out where ``val_split`` > 0.
    train_split: None for all others. Raises DataError where that leaves none for training.
    """
    order = np.random.default_rng(seed).permutation(len(paths))
    n_val = min(max(1, round(val_split * len(paths))), len(paths)) if val_split > 0 else 0
    n_train = len(paths) - n_val
    if train_split is not None:
        n_train = min(n_train, max(1, round(train_split * len(paths))))
    if n_train < 1:
        raise DataError(
            f"{len(paths)} episode(s) cannot be split into training and held-out ones; "
            "record more, or train without evaluation: --val-split 0"
        )
    val, train = order[:n_val], order[n_val : n_val + n_train]
    return [paths[i] for i in sorted(train)], [paths[i] for i in sorted(val)]


class EpisodeDataset(Dataset[TrainingSample]):
    """Steps of episodes by number, episode after episode; may go to worker processes.

    action_source: 'commanded' or 'next_state'. horizon: rows T of a chunk; past the end its last action is repeated and
    marked as padding. image_size: {camera: (width, height)}, the cameras that observations hold. history: how many
    earlier steps they hold as ``past``, fewer as an episode begins.
    """

    def __init__(
        self,
        episodes: Sequence[LoadedEpisode],
        *,
        horizon: int,
        action_source: str,
        image_size: Mapping[str, tuple[int, int]],
        history: int = 0,
    ) -> None:
        self._episodes = tuple(episodes)
        self._history = history
        self._horizon = horizon
        self._commanded = action_source == "commanded"
        self._image_size = dict(image_size)
        self._ends = np.cumsum([len(episode) for episode in episodes])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> TrainingSample:
        episode, step = self._locate(index)
        target = self._targets(episode)
        rows = step + np.arange(self._horizon)
        is_pad = rows >= len(target)
        past = tuple(self._observation(episode, step - back) for back in range(1, min(self._history, step) + 1))
        observation = replace(self._observation(episode, step), past=past)
        return TrainingSample(observation, target[np.minimum(rows, len(target) - 1)], is_pad)

    def __iter__(self) -> Iterator[TrainingSample]:
        return (self[index] for index in range(len(self)))

    def starts(self, start_steps: int) -> np.ndarray:
        """bool [N]: which steps are among the first ``start_steps`` of their episode."""
        return np.concatenate([np.arange(len(episode)) < start_steps for episode in self._episodes])

    def trajectories(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(state, action) of each episode, float32 [N, S] rad, actions of the chosen source."""
        return ((episode.state, self._targets(episode)) for episode in self._episodes)

    @property
    def longest(self) -> int:
        """Steps of the longest episode, 0 without any."""
        return max(map(len, self._episodes), default=0)

    def _locate(self, index: int) -> tuple[LoadedEpisode, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        episode = self._episodes[number]
        return episode, index - (int(self._ends[number]) - len(episode))

    def _observation(self, episode: LoadedEpisode, step: int) -> Observation:
        in_force = episode.commanded[step - 1] if episode.commanded is not None and step > 0 else None
        return Observation(
            images=self._images(episode, step),
            state=episode.state[step],
            instruction=episode.instruction,
            stamp=float(episode.stamp[step]),
            commanded=in_force,
        )

    def _targets(self, episode: LoadedEpisode) -> np.ndarray:
        if not self._commanded:
            return episode.action
        if episode.commanded is None:
            raise DataError(f"{episode.file.path} has no action/commanded; use --action-source next_state")
        return episode.commanded

    def _images(self, episode: LoadedEpisode, step: int) -> dict[str, np.ndarray]:
        jpegs = episode.jpegs(step)
        images: dict[str, np.ndarray] = {}
        for camera, (width, height) in self._image_size.items():
            image = decode_jpeg(jpegs[camera])
            if image.shape[:2] != (height, width):
                raise DataError(
                    f"{episode.file.path}: record {step}: image of camera '{camera}' is {image.shape[1]}x"
                    f"{image.shape[0]}, expected {width}x{height} as in the other episodes"
                )
            images[camera] = image
        return images


def _check_stamps(path: Path, stamp: np.ndarray, control_hz: float) -> None:
    """stamp: float64 [N] s, of an episode that says its rate nowhere else."""
    period = float(np.median(np.diff(stamp)))
    if abs(period * control_hz - 1) > _RATE_TOLERANCE:
        raise DataError(
            f"{path} has a step every {period:g} s by its stamps, data.control_hz is {control_hz:g}; "
            "use recordings of one rate and, if it is this one, say so with --control-hz"
        )


def _check_cameras(file: EpisodeFile, cameras: Sequence[str], flags: Callable[[Sequence[str]], str] | None) -> None:
    missing = [camera for camera in cameras if camera not in file.cameras]
    if missing:
        todo = f"Use episodes with all that the model sees: {', '.join(cameras)}"
        if flags is not None and file.cameras:
            todo = f"Choose among them, for instance: {flags(file.cameras)}"
        raise DataError(
            f"{file.path} has no camera '{missing[0]}'; it has: {', '.join(file.cameras) or 'none'}. {todo}"
        )


def _check_metadata(file: EpisodeFile, robot: RobotSpec, control_hz: float) -> None:
    path, metadata = file.path, file.metadata
    if metadata is None:
        return
    if metadata.robot != robot.name:
        raise DataError(f"{path} is of robot '{metadata.robot}', expected '{robot.name}'; keep robots in folders apart")
    if metadata.joint_names != robot.joint_names:
        raise DataError(
            f"{path} has the joints {', '.join(metadata.joint_names)}; {robot.name} has {', '.join(robot.joint_names)}"
        )
    if abs(metadata.hz - control_hz) > 1e-6 * control_hz:
        raise DataError(
            f"{path} was recorded at {metadata.hz:g} Hz, data.control_hz is {control_hz:g}; "
            f"use recordings of one rate and, if it is this one, --control-hz {metadata.hz:g}"
        )
