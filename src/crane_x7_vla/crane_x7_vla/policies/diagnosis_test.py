"""The search for what was changed between training and deployment, on made-up errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from crane_x7_vla.backends.minivla.config import MiniVLAConfig
from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.config.base import PRIMARY_CAMERA, WRIST_CAMERA
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.policies.diagnosis import Change, Deployment, Recorded, changes, diagnose


def told(instruction: str, statistics: DatasetStatistics) -> Deployment:
    return Deployment(config=OpenVLAOFTConfig.tiny(), statistics=statistics, instruction=instruction)


def letters(now: Deployment) -> Iterator[Change]:
    """Each letter of the instruction may be changed into the right one; a question mark into nothing that runs."""
    for index, letter in enumerate(now.instruction or ""):

        def make(index: int = index, letter: str = letter) -> Deployment:
            if letter == "?":
                raise ConfigError("it cannot be run so")
            text = now.instruction or ""
            return replace(now, instruction=f"{text[:index]}o{text[index + 1 :]}")

        yield Change(cause=f"letter {index}", text="o", make=make)


def wrong_letters(each: float) -> Callable[[Deployment], float]:
    return lambda deployment: (
        0.01 + sum(each * (index + 1) for index, x in enumerate(deployment.instruction or "") if x != "o")
    )


def test_several_causes_are_found_one_after_another_the_greatest_first(tiny_statistics: DatasetStatistics) -> None:
    measure, now = wrong_letters(0.1), told("xox", tiny_statistics)
    found = diagnose(now, measure(now), expected=0.01, allowed=0.001, alternatives=letters, measure=measure)
    assert [(item.change.cause, round(item.error, 3)) for item in found] == [("letter 2", 0.11), ("letter 0", 0.01)]


def test_nothing_is_blamed_where_nothing_helps_or_can_be_run(tiny_statistics: DatasetStatistics) -> None:
    measure, now = wrong_letters(0.1), told("?o?", tiny_statistics)
    assert diagnose(now, measure(now), expected=0.01, allowed=0.001, alternatives=letters, measure=measure) == []


def test_what_is_within_the_allowance_is_not_looked_into(tiny_statistics: DatasetStatistics) -> None:
    measure, now = wrong_letters(0.1), told("xox", tiny_statistics)
    assert diagnose(now, measure(now), expected=0.3, allowed=0.2, alternatives=letters, measure=measure) == []


def test_the_settings_of_the_training_are_among_the_changes(tiny_statistics: DatasetStatistics) -> None:
    trained = told("lift", tiny_statistics)
    settings: Any = trained.config.openvla_oft  # pyright: ignore[reportAttributeAccessIssue]
    other = replace(
        settings,
        span_floor=0.2,
        normalization="bounds",
        image_aug=replace(settings.image_aug, crop_scale=0.7),
        multi_image=replace(settings.multi_image, num_images=1),
        film=replace(settings.film, enabled=False),
        lora_rank=1,
    )
    data = replace(trained.config.data, cameras=(WRIST_CAMERA,))
    now = replace(trained, config=replace(trained.config, data=data, openvla_oft=other), instruction="lower")
    recorded = Recorded(cameras=(PRIMARY_CAMERA, WRIST_CAMERA), statistics=lambda config: tiny_statistics)
    found = list(changes(now, trained=trained, recorded=recorded))
    texts = {(change.cause, change.text) for change in found}
    assert texts >= {
        ("crop", "image_aug.crop_scale 0.9"),
        ("crop", "image_aug.enabled false and crop_scale 0.7"),
        ("statistics", "normalization 'bounds_q99' and span_floor 0.04"),
        ("statistics", "normalization 'zscore'"),
        ("prompt", "instruction 'lift'"),
        ("prompt", "the recorded instructions"),
        ("statistics", "the statistics of its training"),
        ("statistics", "statistics of these episodes"),
        ("cameras", "multi_image.num_images 2 and cameras primary, wrist"),
        ("cameras", "cameras primary"),
        ("film", "film.enabled true"),
        ("action form", "action_form 'absolute'"),
    }
    assert not any("lora_rank" in text or text.startswith("prompt") for _, text in texts)
    cameras = next(change.make() for change in found if change.text.startswith("multi_image"))
    assert [camera.name for camera in cameras.config.cameras] == ["primary", "wrist"]


def test_what_a_vq_brings_along_is_not_among_the_changes(tiny_statistics: DatasetStatistics) -> None:
    config = MiniVLAConfig.tiny()
    recorded = Recorded(cameras=(PRIMARY_CAMERA, WRIST_CAMERA), statistics=lambda config: tiny_statistics)
    for enabled in (True, False):
        settings = replace(config.minivla, vq=replace(config.minivla.vq, enabled=enabled))
        now = Deployment(config=replace(config, minivla=settings), statistics=tiny_statistics, instruction=None)
        causes = {change.cause for change in changes(now, trained=now, recorded=recorded)}
        assert causes == {"crop", "cameras"} | (set() if enabled else {"statistics", "action form"})
