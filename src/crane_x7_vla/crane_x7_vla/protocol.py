"""What the nodes, the simulated arm and the drivers of the real one agree on: names of topics, and stamps.

Topics are relative, so that they can be remapped; the names are those of RT's crane_x7_ros and of realsense2_camera.
"""

from __future__ import annotations

NANOSECONDS = 1_000_000_000
"""In a second. Stamps are int ns wherever they are compared for equality."""

RESET_GAP = NANOSECONDS
"""A simulator's clock jumps ahead by this at a reset, ns; after a longer silence an arm may be anywhere."""

PRIMARY_CAMERA = "primary"
JOINT_STATES = "joint_states"
ARM_TOPIC = "crane_x7_arm_controller/joint_trajectory"
GRIPPER_TOPIC = "crane_x7_gripper_controller/joint_trajectory"
GRIPPER_ACTION = "crane_x7_gripper_controller/gripper_cmd"

# What a simulated scene has besides, and a recorder without an operator asks of it.
NEXT_SCENE = "lift/next"
EPISODE_END = "lift/episode"


def camera_namespace(name: str) -> str:
    """What the topics and frames of a camera begin with."""
    return "camera" if name == PRIMARY_CAMERA else f"camera_{name}"


def camera_topic(name: str) -> str:
    """Image topic of a camera."""
    return f"{camera_namespace(name)}/color/image_raw"
