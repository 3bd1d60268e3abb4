"""The recorder alone, beside an arm that others started: ros2 launch crane_x7_bringup log.launch.py."""

# launch is no package of the registry, so it is not there where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

ARGUMENTS = [
    DeclareLaunchArgument("lockstep", default_value="false", description="go along with a simulator in lockstep"),
    DeclareLaunchArgument("control_hz", default_value="10.0", description="steps per second"),
    DeclareLaunchArgument("use_sim_time", default_value="false", description="take the time from /clock"),
    DeclareLaunchArgument(
        "instruction",
        default_value="pick up the red cube",
        description="the task in words, recorded with each episode",
    ),
    DeclareLaunchArgument("output_dir", default_value="data/tfrecord_logs", description="folder of the episodes"),
]


def generate_launch_description() -> LaunchDescription:
    """The launch file of crane_x7_log with these arguments."""
    recorder = IncludeLaunchDescription(
        PathJoinSubstitution([FindPackageShare("crane_x7_log"), "launch", "recorder.launch.py"]),
        launch_arguments={
            "lockstep": LaunchConfiguration("lockstep"),
            "control_hz": LaunchConfiguration("control_hz"),
            "use_sim_time": LaunchConfiguration("use_sim_time"),
            "instruction": LaunchConfiguration("instruction"),
            "output_dir": LaunchConfiguration("output_dir"),
            "camera_names": "[primary, wrist]",
        }.items(),
    )
    return LaunchDescription([*ARGUMENTS, recorder])
