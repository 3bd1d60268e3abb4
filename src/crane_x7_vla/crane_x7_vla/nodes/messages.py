"""ROS messages to the suite's values and back: the one place where encodings, joint orders and stamps are handled.

The recorder, the simulated arm and the inference node all convert here, so what is recorded is what a policy sees.
Time is int nanoseconds, because stamps are compared for equality in lockstep.
"""

from __future__ import annotations

import importlib.util
from array import array
from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Duration, Time
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from crane_x7_vla.errors import DataError
from crane_x7_vla.protocol import NANOSECONDS
from crane_x7_vla.robot import RobotSpec

AT_ONCE = 0
"""Header stamp of a trajectory that begins when its controller reads it, see ``start_ns``.

Targets streamed to a JointTrajectoryController have this stamp and one point with time_from_start 0 (ros2_controllers,
branch humble at ad559d9; jazzy at ed360c9 and kilted do the same):
joint_trajectory_controller.cpp:1492 drops a trajectory with another stamp when its last point is in the past, which a
busy machine or a clock that differs makes of a target 20 ms ahead;
joint_trajectory_controller.cpp:205 lets every new trajectory begin at the measured position unless open_loop_control is
set (RT does not set it), so that a stream of short ramps would pull a loaded arm back 50 times a second;
trajectory.cpp:128 takes stamp 0 for the time of the first sample, and :205 gives a point that is due as it is.
"""

# Messages kept per topic where none may be lost; a depth of 200 costs no time against 20 (measured, 128 x 128 images).
_DEEP = 200

# Bytes per pixel of the encodings that are read without cv_bridge, and which of them are red, green and blue.
_ENCODINGS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}


def stamp_ns(header: Header) -> int:
    """Header stamp in ns."""
    return header.stamp.sec * NANOSECONDS + header.stamp.nanosec


def to_stamp(ns: int) -> Time:
    """ns to a stamp."""
    return Time(sec=ns // NANOSECONDS, nanosec=ns % NANOSECONDS)


def to_duration(ns: int) -> Duration:
    """ns to a duration."""
    return Duration(sec=ns // NANOSECONDS, nanosec=ns % NANOSECONDS)


def image_to_rgb(message: Image) -> np.ndarray:
    """uint8 [H, W, 3] RGB, an own copy.

    rgb8, bgr8, rgba8, bgra8 and mono8 are read here, rows of any step; one byte per channel, so ``is_bigendian`` says
    nothing about them. Every other encoding goes through cv_bridge. Raises DataError when cv_bridge is needed but not
    installed or cannot convert, and when the size of the data does not fit the header.
    """
    if message.encoding not in _ENCODINGS:
        return _through_cv_bridge(message)
    pixel, channels = _ENCODINGS[message.encoding]
    width, height, step = message.width, message.height, message.step
    if width == 0 or height == 0:
        raise DataError(f"image of {width} x {height} pixels is empty")
    if step < width * pixel or len(message.data) < step * (height - 1) + width * pixel:
        raise DataError(
            f"image says {width} x {height} {message.encoding} with a row step of {step} bytes, "
            f"which does not fit its {len(message.data)} bytes of data"
        )
    data = np.frombuffer(message.data, dtype=np.uint8)
    view = np.lib.stride_tricks.as_strided(data, (height, width, pixel), (step, pixel, 1), writeable=False)
    return np.ascontiguousarray(view[..., channels]) if channels != (0, 1, 2) else view[..., :3].copy()


def _through_cv_bridge(message: Image) -> np.ndarray:
    if importlib.util.find_spec("cv_bridge") is None:
        raise DataError(
            f"image encoding '{message.encoding}' needs cv_bridge, which is not installed; without it "
            f"{', '.join(_ENCODINGS)} are read. Install it with: apt install ros-$ROS_DISTRO-cv-bridge"
        )
    from cv_bridge import CvBridge, CvBridgeError  # pyright: ignore[reportMissingImports]

    try:
        return np.array(CvBridge().imgmsg_to_cv2(message, desired_encoding="rgb8"), dtype=np.uint8)
    except CvBridgeError as error:
        raise DataError(f"image encoding '{message.encoding}' cannot be read as colour: {error}") from error


def rgb_to_image(rgb: np.ndarray, stamp: int, frame_id: str) -> Image:
    """uint8 [H, W, 3] RGB at ``stamp`` ns to an rgb8 message.

    Raises ValueError for another shape or type.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected uint8 [H, W, 3] RGB, got {rgb.dtype} {list(rgb.shape)}")
    height, width, _ = rgb.shape
    message = Image(height=height, width=width, encoding="rgb8", is_bigendian=0, step=3 * width)
    message.header.stamp = to_stamp(stamp)
    message.header.frame_id = frame_id
    # An array('B') is taken over as it is; rclpy checks and copies anything else byte by byte (1000 times slower).
    data = array("B")
    data.frombytes(np.ascontiguousarray(rgb).data)
    message.data = data
    return message


def joint_state_positions(message: JointState, robot: RobotSpec) -> np.ndarray:
    """float32 [S] rad in the robot's order; names in another order and further joints are fine.

    Raises DataError naming the joints that are missing or not finite.
    """
    state = robot.order(list(message.name), list(message.position))
    if not np.isfinite(state).all():
        bad = [name for name, value in zip(robot.joint_names, state, strict=True) if not np.isfinite(value)]
        raise DataError(f"joint state of {', '.join(bad)} is not a finite number")
    return state


def joint_state_message(robot: RobotSpec, stamp: int, position: np.ndarray, velocity: np.ndarray) -> JointState:
    """position, velocity: float [S] in rad and rad/s at ``stamp`` ns."""
    message = JointState(name=list(robot.joint_names), position=position.tolist(), velocity=velocity.tolist())
    message.header.stamp = to_stamp(stamp)
    return message


def trajectory_message(
    joint_names: Sequence[str], start: int, times: Sequence[int] | np.ndarray, positions: np.ndarray
) -> JointTrajectory:
    """positions [P, J] rad, due ``times`` [P] ns after ``start`` ns, as a joint trajectory controller reads them."""
    if positions.shape != (len(times), len(joint_names)):
        raise ValueError(
            f"positions of shape {list(positions.shape)} for {len(times)} times and {len(joint_names)} joints"
        )
    message = JointTrajectory(joint_names=list(joint_names))
    message.header.stamp = to_stamp(start)
    message.points = [
        JointTrajectoryPoint(positions=row, time_from_start=to_duration(int(time)))
        for time, row in zip(times, positions.astype(np.float64).tolist(), strict=True)
    ]
    return message


def trajectory_points(message: JointTrajectory, joint_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [P] ns after the start, float64 [P, J] rad in the order of ``joint_names``).

    Raises DataError when the joints are not those named, when there is no point, and for points with the wrong number
    of positions, with a position that is not finite, or with times that are negative or not increasing.
    """
    names = list(message.joint_names)
    if sorted(names) != sorted(joint_names):
        missing = [name for name in joint_names if name not in names]
        raise DataError(
            f"trajectory is for other joints: expected {', '.join(joint_names)}; got {', '.join(names) or 'none'}"
            + (f"; missing: {', '.join(missing)}" if missing else "")
        )
    if not message.points:
        raise DataError("trajectory has no points")
    for number, point in enumerate(message.points):
        if len(point.positions) != len(names):
            raise DataError(f"point {number} of the trajectory has {len(point.positions)} of {len(names)} positions")
    columns = [names.index(name) for name in joint_names]
    positions = np.array([point.positions for point in message.points], dtype=np.float64)[:, columns]
    if not np.isfinite(positions).all():
        bad = [name for i, name in enumerate(joint_names) if not np.isfinite(positions[:, i]).all()]
        raise DataError(f"trajectory position of {', '.join(bad)} is not a finite number")
    times = np.array(
        [p.time_from_start.sec * NANOSECONDS + p.time_from_start.nanosec for p in message.points], dtype=np.int64
    )
    if times[0] < 0 or np.any(np.diff(times) <= 0):
        raise DataError("time_from_start of the trajectory's points must be increasing, and not negative")
    return times, positions


def start_ns(message: JointTrajectory, now: int) -> int:
    """When a trajectory begins, ns: its header stamp, or ``now`` where that is zero, as in ros2_controllers."""
    return stamp_ns(message.header) or now


def sensor_qos(lockstep: bool) -> QoSProfile:
    """For subscriptions to images and joint states.

    Lockstep loses nothing: reliable and deep, so that a reader may pause for a second. In real time the newest counts
    and a best-effort subscriber matches every publisher.
    """
    if lockstep:
        return _qos(ReliabilityPolicy.RELIABLE, _DEEP)
    return _qos(ReliabilityPolicy.BEST_EFFORT, 5)


def publisher_qos() -> QoSProfile:
    """For publishers of images and joint states: reliable, so that subscribers of both kinds match."""
    return _qos(ReliabilityPolicy.RELIABLE, _DEEP)


def command_qos() -> QoSProfile:
    """For trajectories, on both sides."""
    return _qos(ReliabilityPolicy.RELIABLE, _DEEP)


def latched_qos() -> QoSProfile:
    """For states that a late subscriber must get: the last message is kept, reliable and transient local."""
    return _qos(ReliabilityPolicy.RELIABLE, 1, DurabilityPolicy.TRANSIENT_LOCAL)


def _qos(
    reliability: ReliabilityPolicy, depth: int, durability: DurabilityPolicy = DurabilityPolicy.VOLATILE
) -> QoSProfile:
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability, durability=durability)
