"""A model drives the arm: ros2 launch crane_x7_vla vla_inference.launch.py model_path:=… instruction:=…."""

# launch is no package of the registry, so it is not there where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from launch.actions import DeclareLaunchArgument, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription

ARGUMENTS = [
    DeclareLaunchArgument(
        "params_file",
        default_value=PathJoinSubstitution([FindPackageShare("crane_x7_vla"), "params", "inference.yaml"]),
        description="the parameters that are no argument here",
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
    DeclareLaunchArgument("control_hz", default_value="10.0", description="control rate, that of the policy"),
    DeclareLaunchArgument("dry_run", default_value="false", description="do everything but send commands"),
    DeclareLaunchArgument("lockstep", default_value="false", description="answer each instant of a lockstep simulator"),
    DeclareLaunchArgument("use_sim_time", default_value="false", description="take the time from /clock"),
]


def typed(name: str, kind: type) -> ParameterValue:
    """A launch argument as a parameter of its type, so that an instruction such as "1" stays text."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def end_with_node(event: ProcessExited, _: LaunchContext) -> Shutdown:
    """Without the node there is nothing to launch; its failure is the launch's, which a mere shutdown would hide."""
    if event.returncode != 0:
        raise RuntimeError(f"the inference node ended with exit code {event.returncode}")
    return Shutdown(reason="the inference node ended")


def generate_launch_description() -> LaunchDescription:
    """One node, its parameter file and the arguments laid over it."""
    inference = Node(
        package="crane_x7_vla",
        executable="vla_inference_node",
        name="vla_inference",
        output="screen",
        on_exit=end_with_node,
        parameters=[
            LaunchConfiguration("params_file"),
            {
                "model_path": typed("model_path", str),
                "instruction": typed("instruction", str),
                "device": typed("device", str),
                "autostart": typed("autostart", bool),
                "control_hz": typed("control_hz", float),
                "dry_run": typed("dry_run", bool),
                "lockstep": typed("lockstep", bool),
                "use_sim_time": typed("use_sim_time", bool),
            },
        ],
    )
    return LaunchDescription([*ARGUMENTS, inference])
