"""The simulated arm, driven by the scripted expert: ros2 launch crane_x7_bringup expert_sim.launch.py."""

# launch is no package of the registry, so it is not there where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

ARGUMENTS = [
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
    """Simulator from its own launch file, and the expert."""
    sim = IncludeLaunchDescription(
        PathJoinSubstitution([FindPackageShare("crane_x7_lift"), "launch", "sim.launch.py"]),
        launch_arguments={
            "lockstep": LaunchConfiguration("lockstep"),
            "control_hz": LaunchConfiguration("control_hz"),
            "use_sim_time": LaunchConfiguration("use_sim_time"),
            "seed": LaunchConfiguration("seed"),
            "auto_reset": LaunchConfiguration("auto_reset"),
        }.items(),
    )
    expert = Node(
        package="crane_x7_lift",
        executable="expert_node",
        name="expert",
        output="screen",
        parameters=[
            PathJoinSubstitution([FindPackageShare("crane_x7_lift"), "params", "sim.yaml"]),
            {
                "lockstep": typed("lockstep", bool),
                "control_hz": typed("control_hz", float),
                "use_sim_time": typed("use_sim_time", bool),
            },
        ],
    )
    # The nodes need each other: whichever ends, all end, as under the supervisor.
    together = RegisterEventHandler(OnProcessExit(on_exit=[Shutdown(reason="a node has ended")]))
    return LaunchDescription([*ARGUMENTS, together, sim, expert])
