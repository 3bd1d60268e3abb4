"""The simulated arm: ros2 launch crane_x7_lift sim.launch.py."""

# launch is no package of the registry, so it is not there where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

ARGUMENTS = [
    DeclareLaunchArgument(
        "params_file",
        default_value=PathJoinSubstitution([FindPackageShare("crane_x7_lift"), "params", "sim.yaml"]),
        description="the parameters that are no argument here",
    ),
    DeclareLaunchArgument(
        "lockstep",
        default_value="false",
        description="advance only when the commands of the present instant have come, instead of by the clock",
    ),
    DeclareLaunchArgument(
        "control_hz",
        default_value="10.0",
        description="control periods per second; observations come at this rate",
    ),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        description="simulated time on /clock and in every stamp, instead of the system's",
    ),
    DeclareLaunchArgument("seed", default_value="0", description="seed of the first episode"),
    DeclareLaunchArgument(
        "auto_reset", default_value="false", description="start the next episode a second after one has ended"
    ),
]


def typed(name: str, kind: type) -> ParameterValue:
    """A launch argument as a parameter of its type."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def generate_launch_description() -> LaunchDescription:
    """One node, its parameter file and the arguments laid over it."""
    sim = Node(
        package="crane_x7_lift",
        executable="sim_node",
        name="sim",
        output="screen",
        parameters=[
            LaunchConfiguration("params_file"),
            {
                "lockstep": typed("lockstep", bool),
                "control_hz": typed("control_hz", float),
                "publish_clock": typed("use_sim_time", bool),
                "seed": typed("seed", int),
                "auto_reset": typed("auto_reset", bool),
            },
        ],
    )
    return LaunchDescription([*ARGUMENTS, sim])
