"""Why a policy is further off on its training frames than it should be: found by running it in other ways.

What a user can get wrong between training and the arm is tried one at a time (centre crop, prompt, statistics, cameras,
action form, other settings of the backend), and what brings the error down is the likely cause.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crane_x7_vla.backends.minivla.config import MiniVLAConfig
from crane_x7_vla.backends.prismatic_config import ImageAugConfig, PrismaticVLAConfig
from crane_x7_vla.checkpoints.vq import TrainedVQ
from crane_x7_vla.config.base import CameraConfig, VLAConfig
from crane_x7_vla.config.schema import settings, value_at
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.errors import USER_ERRORS

# Of the error above what is expected, this share may be left by what is called a cause.
_LEFT = 0.6
_AS_GOOD = 0.1  # of what the best change brings
_CAUSES = {
    "image_aug.enabled": "crop",
    "image_aug.crop_scale": "crop",
    "prompt": "prompt",
    "empty_token_id": "prompt",
    "normalization": "statistics",
    "span_floor": "statistics",
    "action_form": "action form",
    "multi_image.enabled": "cameras",
    "multi_image.num_images": "cameras",
    "multi_image.image_history": "cameras",
    "multi_image.use_wrist_camera": "cameras",
    "proprio.enabled": "joint state",
    "film.enabled": "film",
    "action_tokenization_bins": "tokens",
    "strict_reference": "tokens",
}
"""Settings of a backend's block that change what a model sees or how its answer is read, and what that is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """How a model is run. instruction: what it is told, None for each episode's own. vq: what a MiniVLA's codes are."""

    config: VLAConfig
    statistics: DatasetStatistics
    instruction: str | None
    vq: TrainedVQ | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What the episodes say. cameras: all of them, with their sizes. statistics: computed for the action form and the
    horizon of a config."""

    cameras: tuple[CameraConfig, ...]
    statistics: Callable[[VLAConfig], DatasetStatistics]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Another way to run the model. cause: one of ``_CAUSES``. text: what is changed to what. make: raises one of
    USER_ERRORS where there is no such way."""

    cause: str
    text: str
    make: Callable[[], Deployment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A change that brought the error down to ``error`` rad, with those found before it."""

    change: Change
    error: float


def changes(now: Deployment, *, trained: Deployment | None, recorded: Recorded) -> Iterator[Change]:
    """All other ways to run the model of ``now`` that are worth trying; those of its training first, where known."""
    config = now.config
    # A VQ brings along what its actions are in.
    has_own_units = isinstance(config, MiniVLAConfig) and config.minivla.vq.enabled
    if not has_own_units:
        yield from _statistics(now, trained, recorded)
    if isinstance(config, PrismaticVLAConfig):
        if trained is not None and isinstance(trained.config, type(config)):
            yield from _settings(now, config, trained.config)
        yield from _crops(now, config)
        yield from _prompts(now, config)
        if not has_own_units:
            yield from _scales(now, config)
            yield from _forms(now, config)
    yield from _instructions(now, trained)
    yield from _cameras(now, recorded.cameras)


def diagnose(
    now: Deployment,
    error: float,
    *,
    expected: float,
    allowed: float,
    alternatives: Callable[[Deployment], Iterator[Change]],
    measure: Callable[[Deployment], float],
) -> list[Finding]:
    """The changes, one per cause, that bring ``error`` down towards ``expected`` rad, the most effective first.

    Of changes that are about as good it is the one that ``alternatives`` names first. Ends where the error is within
    ``allowed`` of what is expected, or no change helps markedly. measure: the error of a deployment, rad; raises one of
    USER_ERRORS where the model cannot be run so.
    """
    found: list[Finding] = []
    while error - expected > allowed:
        tried: list[tuple[float, Change, Deployment]] = []
        for change in alternatives(now):
            if change.cause in {finding.change.cause for finding in found}:
                continue
            try:
                deployment = change.make()
                tried.append((measure(deployment), change, deployment))
            except USER_ERRORS:  # what cannot be run was not trained so either
                continue
        lowest = min((item[0] for item in tried), default=error)
        if lowest - expected > _LEFT * (error - expected):
            break
        # Of those that are about as good, the first: the settings of the training come before guesses.
        good = lowest + min(allowed, _AS_GOOD * (error - lowest))
        error, change, now = next(item for item in tried if item[0] <= good)
        found.append(Finding(change=change, error=error))
    return found


def _settings(now: Deployment, config: PrismaticVLAConfig, trained: PrismaticVLAConfig) -> Iterator[Change]:
    """For each cause the settings of the training, all at once."""
    differing: dict[str, list[str]] = {}
    for path in settings(type(config)):
        name = path.removeprefix(f"{config.block}.")
        if name in _CAUSES and value_at(config.settings, name) != value_at(trained.settings, name):
            differing.setdefault(_CAUSES[name], []).append(name)
    names = [camera.name for camera in trained.cameras]
    other_cameras = names != [camera.name for camera in config.cameras]
    if other_cameras:
        differing.setdefault("cameras", [])
    for cause, paths in differing.items():
        texts = [f"{path} {_said(value_at(trained.settings, path))}" for path in paths]
        cameras = None
        if cause == "cameras" and other_cameras:
            cameras = trained.data.cameras
            texts.append(f"cameras {', '.join(names)}")
        values = {path.partition(".")[0]: value_at(trained.settings, path.partition(".")[0]) for path in paths}
        yield Change(cause=cause, text=" and ".join(texts), make=_with(now, config, cameras=cameras, **values))


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _crops(now: Deployment, config: PrismaticVLAConfig) -> Iterator[Change]:
    present = config.settings.image_aug
    known = {_area(present)}
    for other in (replace(present, enabled=not present.enabled), ImageAugConfig()):
        if _area(other) not in known:
            known.add(_area(other))
            text = f"image_aug.enabled {_said(other.enabled)} and crop_scale {other.crop_scale:g}"
            yield Change(cause="crop", text=text, make=_with(now, config, image_aug=other))


def _area(config: ImageAugConfig) -> float:
    """Share of the picture that the model sees."""
    return config.crop_scale if config.enabled else 1.0


def _prompts(now: Deployment, config: PrismaticVLAConfig) -> Iterator[Change]:
    prompt = type(config.settings)().prompt
    if prompt != config.settings.prompt:
        yield Change(cause="prompt", text=f"prompt {prompt!r}", make=_with(now, config, prompt=prompt))


def _instructions(now: Deployment, trained: Deployment | None) -> Iterator[Change]:
    others = [] if trained is None else [trained.instruction]
    for instruction in dict.fromkeys([*others, None]):
        if instruction != now.instruction:
            text = "the recorded instructions" if instruction is None else f"instruction {instruction!r}"
            yield Change(cause="prompt", text=text, make=_same(replace(now, instruction=instruction)))


def _scales(now: Deployment, config: PrismaticVLAConfig) -> Iterator[Change]:
    for normalization in ("bounds_q99", "bounds", "zscore"):
        if normalization != config.settings.normalization:
            text = f"normalization {normalization!r}"
            yield Change(cause="statistics", text=text, make=_with(now, config, normalization=normalization))


def _statistics(now: Deployment, trained: Deployment | None, recorded: Recorded) -> Iterator[Change]:
    if trained is not None:
        own = replace(now, statistics=trained.statistics)
        yield Change(cause="statistics", text="the statistics of its training", make=_same(own))
    yield Change(
        cause="statistics",
        text="statistics of these episodes",
        make=lambda: replace(now, statistics=recorded.statistics(now.config)),
    )


def _forms(now: Deployment, config: PrismaticVLAConfig) -> Iterator[Change]:
    form = "absolute" if config.action_form == "relative" else "relative"
    yield Change(cause="action form", text=f"action_form {form!r}", make=_with(now, config, action_form=form))


def _cameras(now: Deployment, recorded: Sequence[CameraConfig]) -> Iterator[Change]:
    """Every choice and order of as many cameras as the model sees."""
    present = [camera.name for camera in now.config.cameras]
    for cameras in itertools.permutations(recorded, len(present)):
        names = [camera.name for camera in cameras]
        if names != present:
            data = replace(now.config.data, cameras=cameras)
            yield Change(
                cause="cameras",
                text=f"cameras {', '.join(names)}",
                make=lambda data=data: replace(now, config=replace(now.config, data=data)),
            )


def _same(deployment: Deployment) -> Callable[[], Deployment]:
    return lambda: deployment


def _with(
    now: Deployment, config: PrismaticVLAConfig, *, cameras: tuple[CameraConfig, ...] | None = None, **values: Any
) -> Callable[[], Deployment]:
    """Makes ``now`` with other values in the backend's block and, if given, with other cameras."""

    def make() -> Deployment:
        data = config.data if cameras is None else replace(config.data, cameras=cameras)
        block = replace(config.settings, **values)
        return replace(now, config=replace(config, data=data, **{config.block: block}))

    return make
