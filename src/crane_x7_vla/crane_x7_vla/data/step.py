# pyright: strict, reportMissingTypeStubs=false
"""One recorded step: the schema of a record, and the suite's one JPEG codec.

| key | value |
|---|---|
| observation/state | float32 [S] rad, RobotSpec order |
| observation/image | JPEG bytes of the camera ``primary`` |
| observation/image_<camera> | JPEG bytes of every other camera |
| observation/stamp_ns | int64 ns, the instant of the step |
| observation/stamp_ns/state, observation/stamp_ns/<camera> | int64 ns, header stamps of what was paired with it |
| action | float32 [S] rad, the state of the next step |
| action/commanded | float32 [S] rad, the target in force at the end of the step; absent where nothing was commanded |
| language_instruction | UTF-8 |
| schema_version | int64 |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from crane_x7_vla.data.tfrecord import Feature, decode_example, encode_example
from crane_x7_vla.errors import DataError
from crane_x7_vla.protocol import NANOSECONDS, PRIMARY_CAMERA

SCHEMA_VERSION = 1
STATE_SOURCE = "state"
"""Not a camera: the name under which the stamp of the joint state is stored."""

NOMINAL_HZ = 10.0
"""Only spaces the stamps of foreign files that hold none; never taken for the rate of their data."""

MAX_IMAGE_PIXELS = 64_000_000

# Other projects' names for the same thing (requirements: read them, never write them), first found wins.
_STATE_KEYS = ("observation/state", "observation/proprio")
_INSTRUCTION_KEYS = ("language_instruction", "prompt", "task/language_instruction")
_IMAGE_KEY = "observation/image"
_STAMP_KEY = "observation/stamp_ns"


class NewerSchemaError(DataError):
    """A record of a later version of the suite."""


def encode_jpeg(image: NDArray[np.uint8], quality: int = 95) -> bytes:
    """uint8 [H, W, 3] RGB to JPEG. Colour is not subsampled (4:4:4): at 128 pixels a small object would lose its own.

    Raises ValueError for another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 [H, W, 3] RGB, got {image.dtype} {list(image.shape)}")
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444", fastdct=False
    )


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """JPEG to uint8 [H, W, 3] RGB. Raises DataError when it is damaged or unreasonably large."""
    height, width = jpeg_size(data)
    if height * width > MAX_IMAGE_PIXELS:
        raise DataError(f"JPEG of {width} x {height} pixels, at most {MAX_IMAGE_PIXELS} pixels are read")
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    except ValueError as error:
        raise DataError(f"JPEG is damaged: {error}") from error


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header; raises DataError when the bytes are no JPEG."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise DataError(f"not a JPEG: {error}") from error
    return int(height), int(width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One record.

    images: JPEG by camera, at ``stamp``. state: float32 [S] rad at ``stamp``. action: float32 [S] rad, the state of the
    next step. commanded: float32 [S] rad, the target in force at the end of the step, or None. stamp: s, stored in ns.
    image_stamps, state_stamp: s, header stamps of the messages paired with ``stamp``; None for the same as ``stamp``.
    """

    images: Mapping[str, bytes]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    instruction: str
    stamp: float
    commanded: NDArray[np.float32] | None = None
    image_stamps: Mapping[str, float] = field(default_factory=dict[str, float])
    state_stamp: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("state", self.state), ("action", self.action), ("commanded", self.commanded)):
            if value is None:
                continue
            if value.dtype != np.float32 or value.ndim != 1:
                raise ValueError(f"{name} must be a float32 vector, got {value.dtype} of shape {list(value.shape)}")
            if value.size != self.state.size:
                raise ValueError(f"{name} has {value.size} joints, state has {self.state.size}")
        if STATE_SOURCE in self.images:
            raise ValueError(f"a camera cannot be named '{STATE_SOURCE}'")


def image_key(camera: str) -> str:
    """Record key of a camera's image."""
    return _IMAGE_KEY if camera == PRIMARY_CAMERA else f"{_IMAGE_KEY}_{camera}"


def encode_step(step: Step) -> bytes:
    """The record of a step, a serialized tf.train.Example."""
    features: dict[str, bytes | Sequence[bytes] | NDArray[np.float32] | NDArray[np.int64]] = {
        _STATE_KEYS[0]: step.state,
        "action": step.action,
        _INSTRUCTION_KEYS[0]: step.instruction.encode(),
        _STAMP_KEY: _nanoseconds(step.stamp),
        f"{_STAMP_KEY}/{STATE_SOURCE}": _nanoseconds(step.stamp if step.state_stamp is None else step.state_stamp),
        "schema_version": np.array([SCHEMA_VERSION], np.int64),
    }
    if step.commanded is not None:
        features["action/commanded"] = step.commanded
    for camera, image in step.images.items():
        features[image_key(camera)] = image
        features[f"{_STAMP_KEY}/{camera}"] = _nanoseconds(step.image_stamps.get(camera, step.stamp))
    return encode_example(features)


def decode_step(payload: bytes, *, index: int = 0, hz: float | None = None) -> Step:
    """The step of a record, also of other projects' records by their names.

    index, hz: give the stamp where the record holds none. Raises DataError that says which key is wrong.
    """
    features = decode_example(payload)
    version = features.get("schema_version")
    if isinstance(version, np.ndarray) and version.size == 1 and version[0] > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"schema_version {int(version[0])} is newer than {SCHEMA_VERSION}, update the suite to read it"
        )
    state = _floats(features, _STATE_KEYS)
    action = _floats(features, ("action",))
    commanded = _floats(features, ("action/commanded",)) if "action/commanded" in features else None
    for name, value in (("action", action), ("action/commanded", commanded)):
        if value is not None and value.size != state.size:
            raise DataError(f"{name} has {value.size} values, the state has {state.size}")
    stamp = _seconds(features, _STAMP_KEY)
    if stamp is None:
        stamp = index / (hz or NOMINAL_HZ)
    images: dict[str, bytes] = {}
    image_stamps: dict[str, float] = {}
    for key in features:
        camera = _camera_of(key)
        if camera is not None and camera not in images:
            images[camera] = _bytes(features, key)
            image_stamp = _seconds(features, f"{_STAMP_KEY}/{camera}")
            image_stamps[camera] = stamp if image_stamp is None else image_stamp
    return Step(
        images=images,
        state=state,
        action=action,
        commanded=commanded,
        stamp=stamp,
        image_stamps=image_stamps,
        state_stamp=_seconds(features, f"{_STAMP_KEY}/{STATE_SOURCE}"),
        instruction=_text(features),
    )


def has_stamp(payload: bytes) -> bool:
    """Whether a record says when it was; raises DataError when it is no Example."""
    return _STAMP_KEY in decode_example(payload)


def _camera_of(key: str) -> str | None:
    if key == _IMAGE_KEY:
        return PRIMARY_CAMERA
    return key.removeprefix(f"{_IMAGE_KEY}_") if key.startswith(f"{_IMAGE_KEY}_") else None


def _nanoseconds(seconds: float) -> NDArray[np.int64]:
    return np.array([round(seconds * NANOSECONDS)], np.int64)


def _seconds(features: Mapping[str, Feature], key: str) -> float | None:
    value = features.get(key)
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.dtype != np.int64 or value.size != 1:
        raise DataError(f"{key} must be one int64, got {_describe(value)}")
    return int(value[0]) / NANOSECONDS


def _floats(features: Mapping[str, Feature], keys: Sequence[str]) -> NDArray[np.float32]:
    value = _first(features, keys)
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.size == 0:
        raise DataError(f"{keys[0]} must be floats, got {_describe(value)}")
    return value.astype(np.float32)


def _bytes(features: Mapping[str, Feature], key: str) -> bytes:
    value = features[key]
    if isinstance(value, np.ndarray) or len(value) != 1:
        raise DataError(f"{key} must be one byte string, got {_describe(value)}")
    return value[0]


def _text(features: Mapping[str, Feature]) -> str:
    _first(features, _INSTRUCTION_KEYS)
    key = next(key for key in _INSTRUCTION_KEYS if key in features)
    try:
        return _bytes(features, key).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{key} is not UTF-8: {error}") from error


def _first(features: Mapping[str, Feature], keys: Sequence[str]) -> Feature:
    for key in keys:
        if key in features:
            return features[key]
    raise DataError(f"no {' or '.join(keys)}; the record has: {', '.join(sorted(features)) or 'nothing'}")


def _describe(value: Feature) -> str:
    return f"{value.size} of {value.dtype}" if isinstance(value, np.ndarray) else f"{len(value)} byte strings"
