"""The search for what was changed between training and deployment, on made-up errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

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
    settings = trained.config.openvla_oft  # pyright: ignore[reportAttributeAccessIssue]
    other = replace(settings, span_floor=0.2, image_aug=replace(settings.image_aug, crop_scale=0.7))
    now = replace(trained, config=replace(trained.config, openvla_oft=other), instruction="lower")
    recorded = Recorded(cameras=(PRIMARY_CAMERA, WRIST_CAMERA), statistics=lambda config: tiny_statistics)
    texts = {change.text for change in changes(now, trained=trained, recorded=recorded)}
    assert texts >= {
        "image_aug.enabled true and crop_scale 0.9",
        "normalization bounds_q99 and span_floor 0.04",
        "instruction 'lift'",
        "the recorded instructions",
        "the statistics of its training",
        "statistics of these episodes",
        "cameras wrist, primary",
        "action_form absolute",
    }
    assert not any(text.startswith("prompt") for text in texts)
