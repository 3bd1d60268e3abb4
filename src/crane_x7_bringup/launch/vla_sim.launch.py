"""The simulated arm, driven by a model: ros2 launch crane_x7_bringup vla_sim.launch.py model_path:=…."""

# launch is no package of the registry, so it is not there where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
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
    """The launch files of crane_x7_lift and crane_x7_vla with these arguments."""
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
    # The nodes need each other: whichever ends, all end, as under the supervisor.
    together = RegisterEventHandler(OnProcessExit(on_exit=[Shutdown(reason="a node has ended")]))
    # A group keeps an included file's arguments to itself; params_file of the first would be that of the second too.
    return LaunchDescription([*ARGUMENTS, together, GroupAction([sim]), GroupAction([inference])])
