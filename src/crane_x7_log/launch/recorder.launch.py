"""The recorder: ros2 launch crane_x7_log recorder.launch.py instruction:="pick up the red cube"."""

# launch is no package of the registry, so it is not there where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from typing import List  # noqa: UP035

from launch.actions import DeclareLaunchArgument, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription

# launch knows typing's List only.
STRINGS = List[str]  # noqa: UP006

ARGUMENTS = [
    DeclareLaunchArgument(
        "params_file",
        default_value=PathJoinSubstitution([FindPackageShare("crane_x7_log"), "params", "recorder.yaml"]),
        description="the parameters that are no argument here",
    ),
    DeclareLaunchArgument("instruction", default_value="", description="the task in words, needed before ~/start"),
    DeclareLaunchArgument("output_dir", default_value="data/tfrecord_logs", description="folder of the episodes"),
    DeclareLaunchArgument("control_hz", default_value="10.0", description="steps per second"),
    DeclareLaunchArgument("camera_names", default_value="[primary]", description="cameras, such as [primary, wrist]"),
    DeclareLaunchArgument(
        "camera_topics", default_value="['']", description="their image topics in the same order; [''] for the usual"
    ),
    DeclareLaunchArgument("commanded", default_value="auto", description="action/commanded: auto, required or off"),
    DeclareLaunchArgument(
        "num_episodes",
        default_value="0",
        description="record so many episodes without being asked, then end; 0: start each by ~/start",
    ),
    DeclareLaunchArgument(
        "episode_seconds", default_value="20.0", description="with num_episodes: the longest episode, s"
    ),
    DeclareLaunchArgument(
        "reset_seconds",
        default_value="10.0",
        description="with num_episodes: pause between two episodes, to put everything back; none in simulation, s",
    ),
    DeclareLaunchArgument("lockstep", default_value="false", description="record a simulator in lockstep"),
    DeclareLaunchArgument("use_sim_time", default_value="false", description="take the time from /clock"),
    DeclareLaunchArgument("namespace", default_value="", description="namespace of the node and its topics"),
]


def typed(name: str, kind: type) -> ParameterValue:
    """A launch argument as a parameter of its type, so that an instruction such as "1" stays text."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def end_with_node(event: ProcessExited, _: LaunchContext) -> Shutdown:
    """Without the node there is nothing to launch; its failure is the launch's, which a mere shutdown would hide."""
    if event.returncode != 0:
        raise RuntimeError(f"the recorder ended with exit code {event.returncode}")
    return Shutdown(reason="the recorder ended")


def generate_launch_description() -> LaunchDescription:
    """One node, its parameter file and the arguments laid over it."""
    recorder = Node(
        package="crane_x7_log",
        executable="recorder_node",
        name="recorder",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        on_exit=end_with_node,
        parameters=[
            LaunchConfiguration("params_file"),
            {
                "instruction": typed("instruction", str),
                "output_dir": typed("output_dir", str),
                "control_hz": typed("control_hz", float),
                "camera_names": typed("camera_names", STRINGS),
                "camera_topics": typed("camera_topics", STRINGS),
                "commanded": typed("commanded", str),
                "num_episodes": typed("num_episodes", int),
                "episode_seconds": typed("episode_seconds", float),
                "reset_seconds": typed("reset_seconds", float),
                "lockstep": typed("lockstep", bool),
                "use_sim_time": typed("use_sim_time", bool),
            },
        ],
    )
    return LaunchDescription([*ARGUMENTS, recorder])
