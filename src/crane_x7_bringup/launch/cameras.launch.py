"""Drivers of the cameras, on the topics that recorder and inference node take them from.

ros2 launch crane_x7_bringup cameras.launch.py primary_serial:=… wrist_device:=/dev/video2

Each camera is given by the serial number of a RealSense or by a video device; one that is given neither is not started.
"""

# launch is no package of the registry, so it is not there where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from typing import List  # noqa: UP035

from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription

# launch knows typing's List only.
INTEGERS = List[int]  # noqa: UP006

# Name of a camera's driver, and first part of its topics.
NAMES = {"primary": "camera", "wrist": "camera_wrist"}

ARGUMENTS = [
    DeclareLaunchArgument("primary_serial", default_value="", description="RealSense that sees the scene"),
    DeclareLaunchArgument("primary_device", default_value="", description="or its video device, such as /dev/video0"),
    DeclareLaunchArgument("wrist_serial", default_value="", description="RealSense on the gripper"),
    DeclareLaunchArgument("wrist_device", default_value="", description="or its video device, such as /dev/video2"),
    DeclareLaunchArgument("width", default_value="640", description="pixels"),
    DeclareLaunchArgument("height", default_value="480", description="pixels"),
    DeclareLaunchArgument("fps", default_value="30", description="images per second"),
]


def given(argument: str) -> IfCondition:
    """Whether a launch argument has a value."""
    return IfCondition(PythonExpression(["'", LaunchConfiguration(argument), "' != ''"]))


def end_with_driver(event: ProcessExited, context: LaunchContext) -> None:
    """A camera that is gone ends the launch, so that whoever started it can start it again."""
    if not context.is_shutdown:
        raise RuntimeError(f"a camera's driver ended with exit code {event.returncode}")


def realsense(camera: str) -> Node:
    """Colour images on /camera/color/image_raw, or /camera_wrist/color/image_raw."""
    profile = [LaunchConfiguration("width"), "x", LaunchConfiguration("height"), "x", LaunchConfiguration("fps")]
    return Node(
        package="realsense2_camera",
        executable="realsense2_camera_node",
        name=NAMES[camera],
        output="screen",
        condition=given(f"{camera}_serial"),
        on_exit=end_with_driver,
        parameters=[
            {
                # The driver takes the underscore off; without it digits would be a number.
                "serial_no": ParameterValue(["_", LaunchConfiguration(f"{camera}_serial")], value_type=str),
                "camera_name": NAMES[camera],
                "enable_color": True,
                "enable_depth": False,
                "rgb_camera.color_profile": ParameterValue(profile, value_type=str),
            }
        ],
    )


def video_device(camera: str) -> Node:
    """The same topics from a USB camera."""
    size = ["[", LaunchConfiguration("width"), ", ", LaunchConfiguration("height"), "]"]
    return Node(
        package="v4l2_camera",
        executable="v4l2_camera_node",
        name="driver",
        namespace=f"{NAMES[camera]}/color",
        output="screen",
        condition=given(f"{camera}_device"),
        on_exit=end_with_driver,
        parameters=[
            {
                "video_device": ParameterValue(LaunchConfiguration(f"{camera}_device"), value_type=str),
                "image_size": ParameterValue(size, value_type=INTEGERS),
                "time_per_frame": ParameterValue(["[1, ", LaunchConfiguration("fps"), "]"], value_type=INTEGERS),
                "output_encoding": "rgb8",
                "camera_frame_id": NAMES[camera],
            }
        ],
    )


def generate_launch_description() -> LaunchDescription:
    """A driver for each camera that is given."""
    drivers = [driver(camera) for camera in NAMES for driver in (realsense, video_device)]
    return LaunchDescription([*ARGUMENTS, *drivers])
