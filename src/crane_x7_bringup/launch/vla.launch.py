"""A model drives an arm that others started: ros2 launch crane_x7_bringup vla.launch.py model_path:=…."""

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
    DeclareLaunchArgument("model_path", default_value="", description="directory of a merged model, or a checkpoint-N"),
    DeclareLaunchArgument("instruction", default_value="pick up the red cube", description="what the arm shall do"),
    DeclareLaunchArgument(
        "device", default_value="auto", description="cpu, cuda, cuda:1, …; auto takes a GPU where there is one"
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="true",
        description="drive as soon as everything is seen; otherwise wait for ~/start",
    ),
]


def generate_launch_description() -> LaunchDescription:
    """The launch file of crane_x7_vla with these arguments."""
    inference = IncludeLaunchDescription(
        PathJoinSubstitution([FindPackageShare("crane_x7_vla"), "launch", "vla_inference.launch.py"]),
        launch_arguments={
            "lockstep": LaunchConfiguration("lockstep"),
            "control_hz": LaunchConfiguration("control_hz"),
            "use_sim_time": LaunchConfiguration("use_sim_time"),
            "model_path": LaunchConfiguration("model_path"),
            "instruction": LaunchConfiguration("instruction"),
            "device": LaunchConfiguration("device"),
            "autostart": LaunchConfiguration("autostart"),
        }.items(),
    )
    return LaunchDescription([*ARGUMENTS, inference])
