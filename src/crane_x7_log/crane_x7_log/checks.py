"""What may be wrong with a recorded episode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crane_x7_log.frozen import FrozenCameraWatch
from crane_x7_log.sampling import Sample, Stamped
from crane_x7_vla.data.episode import EpisodeArrays, EpisodeFile, EpisodeMetadata, Step, decode_jpeg, remedy
from crane_x7_vla.errors import ConfigError, DataError
from crane_x7_vla.protocol import NANOSECONDS
from crane_x7_vla.robot import RobotSpec, robot_spec

# Encoder noise and a calibration a little off bring a measured joint beyond its limit; more than this is wrong, rad.
_LIMIT_MARGIN_RAD = 0.05
_FROZEN_S = 2.0
_MISSED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Finding:
    """is_error: the episode must not be trained on; otherwise somebody should look at it."""

    is_error: bool
    text: str


def check_episode(path: Path) -> list[Finding]:
    """Reads every record and decodes every image; an empty list when nothing is wrong."""
    try:
        file = EpisodeFile(path)
        arrays = file.arrays()
        findings = _check_images(file)
    except DataError as error:
        return [Finding(True, str(error).removeprefix(f"{path}: ").removesuffix(remedy(path)))]
    metadata = file.metadata
    findings += _check_stamps(arrays, file.hz)
    if metadata is None:
        return [*findings, Finding(False, "no metadata of this suite: robot and rate are not known")]
    try:
        findings += _check_limits(arrays, robot_spec(metadata.robot))
    except ConfigError as error:
        findings.append(Finding(True, str(error)))
    return [*findings, *_check_actions(arrays), *_check_metadata(metadata)]


def _check_stamps(arrays: EpisodeArrays, hz: float | None) -> list[Finding]:
    steps = np.diff(arrays.stamp)
    back = np.flatnonzero(steps <= 0)
    if back.size:
        return [Finding(True, f"stamps do not increase after record {back[0]}")]
    if hz is None:
        return []
    uneven = np.flatnonzero(np.abs(steps * hz - 1) > 0.5)
    if not uneven.size:
        return []
    worst = uneven[np.argmax(np.abs(steps[uneven] * hz - 1))]
    return [
        Finding(
            True,
            f"{uneven.size} steps do not last 1/{hz:g} s; the worst, after record {worst}, lasts {steps[worst]:.3f} s",
        )
    ]


def _check_limits(arrays: EpisodeArrays, robot: RobotSpec) -> list[Finding]:
    if arrays.state.shape[1] != robot.size:
        return [Finding(True, f"{arrays.state.shape[1]} joints, {robot.name} has {robot.size}")]
    lower, upper = np.array(robot.lower) - _LIMIT_MARGIN_RAD, np.array(robot.upper) + _LIMIT_MARGIN_RAD
    findings: list[Finding] = []
    # Commands beyond a limit are clamped by the controller; a measured state beyond it is a wrong unit or order.
    for name, values, is_error in (("state", arrays.state, True), ("commanded", arrays.commanded, False)):
        if values is None:
            continue
        outside = (values < lower) | (values > upper)
        if outside.any():
            record, joint = (int(index) for index in np.argwhere(outside)[0])
            findings.append(
                Finding(
                    is_error,
                    f"{name} of {robot.joint_names[joint]} is {values[record, joint]:.3f} rad in record {record}, its "
                    f"limits are {robot.lower[joint]:.3f} to {robot.upper[joint]:.3f} rad",
                )
            )
    return findings


def _check_actions(arrays: EpisodeArrays) -> list[Finding]:
    findings: list[Finding] = []
    if not np.array_equal(arrays.action[:-1], arrays.state[1:]):
        findings.append(Finding(True, "action is not the state of the next record"))
    if arrays.commanded is None:
        findings.append(Finding(False, "no action/commanded: only the states that followed can be learnt"))
    if np.ptp(arrays.state, axis=0).max() < 1e-3:
        findings.append(Finding(False, "the arm does not move"))
    return findings


def _check_metadata(metadata: EpisodeMetadata) -> list[Finding]:
    findings = [
        Finding(False, f"{count} of {metadata.n_steps} steps use a distant message of {source}")
        for source, count in metadata.missed.items()
        if count > _MISSED_SHARE * metadata.n_steps
    ]
    if metadata.recovered:
        findings.append(Finding(False, "recovered: it was cut off, so the task may not be finished in it"))
    return findings


def _check_images(file: EpisodeFile) -> list[Finding]:
    if not file.cameras:
        return [Finding(True, "no camera image")]
    watch = FrozenCameraWatch(labels={camera: f"camera {camera}" for camera in file.cameras}, limit_s=_FROZEN_S)
    for index, step in enumerate(file.steps()):
        for camera, jpeg in step.images.items():
            try:
                height, width, _ = decode_jpeg(jpeg).shape
            except DataError as error:
                return [Finding(True, f"record {index}: image of {camera}: {error}")]
            known = None if file.metadata is None else file.metadata.cameras.get(camera)
            if known is not None and (known.width, known.height) != (width, height):
                return [
                    Finding(
                        True,
                        f"record {index}: image of {camera} is {width} x {height}, "
                        f"the metadata say {known.width} x {known.height}",
                    )
                ]
        frozen = watch.fault(_sample(step))
        if frozen is not None:
            return [Finding(True, f"record {index}: {frozen}")]
    return []


def _sample(step: Step) -> Sample:
    stamp_ns = round(step.stamp * NANOSECONDS)
    images = {camera: Stamped(stamp_ns, jpeg) for camera, jpeg in step.images.items()}
    return Sample(stamp_ns, Stamped(stamp_ns, step.state), images)
