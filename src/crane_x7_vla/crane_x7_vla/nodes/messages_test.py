from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory

from crane_x7_vla.errors import DataError
from crane_x7_vla.nodes import messages
from crane_x7_vla.robot import CRANE_X7

NAMES = CRANE_X7.joint_names


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def image(data: np.ndarray, encoding: str, *, padding: int = 0) -> Image:
    """A message whose rows are followed by ``padding`` bytes of 0xEE."""
    rows = data.reshape(len(data), -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xEE)
    return Image(
        height=data.shape[0],
        width=data.shape[1],
        encoding=encoding,
        step=padded.shape[1],
        data=padded.tobytes(),
    )


def test_rgb_round_trip_keeps_pixels_stamp_and_frame(rgb: np.ndarray) -> None:
    message = messages.rgb_to_image(rgb, 3_000_000_001, "camera")
    np.testing.assert_array_equal(messages.image_to_rgb(message), rgb)
    assert messages.stamp_ns(message.header) == 3_000_000_001
    assert message.header.frame_id == "camera"
    assert message.step == 21


def test_a_pure_red_image_stays_red() -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    assert bytes(messages.rgb_to_image(red, 0, "").data)[:3] == b"\xff\x00\x00"
    blue_first = red[..., ::-1]
    np.testing.assert_array_equal(messages.image_to_rgb(image(blue_first, "bgr8")), red)


@pytest.mark.parametrize("padding", [0, 3, 11])
@pytest.mark.parametrize("big_endian", [0, 1])
def test_encodings_with_row_padding(rgb: np.ndarray, padding: int, big_endian: int) -> None:
    alpha = np.full((5, 7, 1), 9, np.uint8)
    cases = {
        "rgb8": rgb,
        "bgr8": rgb[..., ::-1],
        "rgba8": np.concatenate([rgb, alpha], axis=2),
        "bgra8": np.concatenate([rgb[..., ::-1], alpha], axis=2),
    }
    for encoding, data in cases.items():
        message = image(np.ascontiguousarray(data), encoding, padding=padding)
        message.is_bigendian = big_endian
        result = messages.image_to_rgb(message)
        np.testing.assert_array_equal(result, rgb, err_msg=encoding)
        assert result.flags.c_contiguous
        assert result.flags.owndata


def test_last_row_may_lack_its_padding(rgb: np.ndarray) -> None:
    message = image(rgb, "rgb8", padding=4)
    message.data = bytes(message.data)[:-4]
    np.testing.assert_array_equal(messages.image_to_rgb(message), rgb)


def test_mono_becomes_grey(rgb: np.ndarray) -> None:
    grey = rgb[..., :1]
    result = messages.image_to_rgb(image(grey, "mono8", padding=1))
    np.testing.assert_array_equal(result, np.repeat(grey, 3, axis=2))


def test_result_does_not_alias_the_message(rgb: np.ndarray) -> None:
    message = messages.rgb_to_image(rgb, 0, "")
    result = messages.image_to_rgb(message)
    message.data[0] = (int(rgb[0, 0, 0]) + 1) % 256
    np.testing.assert_array_equal(result, rgb)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"step": 20}, "row step of 20"),
        ({"data": b"\0" * 100}, "100 bytes"),
        ({"height": 6}, "does not fit"),
        ({"width": 0}, "empty"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(rgb: np.ndarray, change: dict[str, object], text: str) -> None:
    message = image(rgb, "rgb8")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(DataError, match=text):
        messages.image_to_rgb(message)


@pytest.mark.skipif(importlib.util.find_spec("cv_bridge") is not None, reason="cv_bridge is installed")
@pytest.mark.parametrize("encoding", ["bayer_rggb8", "yuv422", "16UC1", "", "RGB8"])
def test_other_encodings_name_cv_bridge(encoding: str) -> None:
    message = image(np.zeros((2, 4, 1), np.uint8), encoding)
    with pytest.raises(DataError, match=f"'{encoding}' needs cv_bridge"):
        messages.image_to_rgb(message)


@pytest.mark.skipif(importlib.util.find_spec("cv_bridge") is None, reason="cv_bridge is not installed")
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
def test_equals_cv_bridge(rgb: np.ndarray, encoding: str) -> None:
    from cv_bridge import CvBridge  # pyright: ignore[reportMissingImports]

    depth = {"mono8": 1, "rgba8": 4, "bgra8": 4}.get(encoding, 3)
    data = np.random.default_rng(1).integers(0, 256, (5, 7, depth), dtype=np.uint8)
    message = image(data, encoding)
    np.testing.assert_array_equal(messages.image_to_rgb(message), CvBridge().imgmsg_to_cv2(message, "rgb8"))


@pytest.mark.parametrize("bad", [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.float32)])
def test_only_rgb_becomes_an_image(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        messages.rgb_to_image(bad, 0, "")


def test_joint_states_in_any_order_with_others_among_them() -> None:
    names = [*reversed(NAMES), "crane_x7_gripper_finger_b_joint"]
    position = [*reversed([0.1 * i for i in range(8)]), 9.0]
    state = messages.joint_state_positions(JointState(name=names, position=position), CRANE_X7)
    assert state.dtype == np.float32
    np.testing.assert_allclose(state, 0.1 * np.arange(8), rtol=1e-6)


def test_missing_or_unknown_joint_state_is_named() -> None:
    with pytest.raises(DataError, match=f"lacks {NAMES[3]}"):
        messages.joint_state_positions(
            JointState(name=[n for n in NAMES if n != NAMES[3]], position=[0.0] * 7), CRANE_X7
        )
    position = [0.0] * 8
    position[5] = float("nan")
    with pytest.raises(DataError, match=f"{NAMES[5]} is not a finite"):
        messages.joint_state_positions(JointState(name=list(NAMES), position=position), CRANE_X7)


def test_joint_state_round_trip() -> None:
    position = np.linspace(-1.0, 1.0, 8).astype(np.float32)
    message = messages.joint_state_message(CRANE_X7, 5_100_000_000, position, np.zeros(8, np.float32))
    np.testing.assert_array_equal(messages.joint_state_positions(message, CRANE_X7), position)
    assert messages.stamp_ns(message.header) == 5_100_000_000


@pytest.mark.parametrize("ns", [0, 1, 999_999_999, 1_000_000_000, 1_700_000_000_123_456_789])
def test_stamps_are_exact(ns: int) -> None:
    assert messages.stamp_ns(Header(stamp=messages.to_stamp(ns))) == ns


def test_trajectory_round_trip_in_another_order() -> None:
    positions = np.arange(6, dtype=np.float32).reshape(2, 3)
    message = messages.trajectory_message(["c", "a", "b"], 42, [100_000_000, 1_200_000_000], positions)
    times, read = messages.trajectory_points(message, ["a", "b", "c"])
    assert times.tolist() == [100_000_000, 1_200_000_000]
    np.testing.assert_array_equal(read, positions[:, [1, 2, 0]].astype(np.float64))
    assert messages.start_ns(message, 7) == 42


def test_float32_targets_survive_the_message_exactly() -> None:
    target = np.random.default_rng(0).normal(size=(1, 7)).astype(np.float32)
    _, read = messages.trajectory_points(messages.trajectory_message(NAMES[:7], 1, [1], target), NAMES[:7])
    np.testing.assert_array_equal(read.astype(np.float32), target)


def test_a_zero_stamp_means_now() -> None:
    assert messages.start_ns(JointTrajectory(), 7) == 7


def test_trajectories_that_cannot_be_followed_are_refused() -> None:
    def trajectory(positions: object = (0.0, 1.0), times: tuple[int, ...] = (1,)) -> JointTrajectory:
        return messages.trajectory_message(["a", "b"], 1, list(times), np.tile(np.array(positions), (len(times), 1)))

    with pytest.raises(DataError, match="expected a, c; got a, b; missing: c"):
        messages.trajectory_points(trajectory(), ["a", "c"])
    with pytest.raises(DataError, match="expected a; got a, b"):
        messages.trajectory_points(trajectory(), ["a"])
    with pytest.raises(DataError, match="no points"):
        messages.trajectory_points(trajectory(times=()), ["a", "b"])
    with pytest.raises(DataError, match="of b is not a finite"):
        messages.trajectory_points(trajectory((0.0, float("nan"))), ["a", "b"])
    for times in ((-1,), (0, 0), (2, 2), (3, 1)):
        with pytest.raises(DataError, match="increasing, and not negative"):
            messages.trajectory_points(trajectory(times=times), ["a", "b"])
    short = trajectory()
    next(iter(short.points)).positions = [0.0]
    with pytest.raises(DataError, match="point 0 of the trajectory has 1 of 2"):
        messages.trajectory_points(short, ["a", "b"])


def test_repeated_joint_is_refused() -> None:
    message = JointTrajectory(joint_names=["a", "a"])
    with pytest.raises(DataError, match="other joints"):
        messages.trajectory_points(message, ["a"])
