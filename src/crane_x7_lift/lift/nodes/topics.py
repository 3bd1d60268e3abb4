"""Names of what the simulated arm publishes and offers, relative so that they can be remapped.

Joint states, images and trajectories have the real arm's names; what only a simulator knows is under ``lift/``.
"""

from __future__ import annotations

from crane_x7_vla.protocol import EPISODE_END, JOINT_STATES, NEXT_SCENE, camera_namespace, camera_topic

__all__ = [
    "CLOCK",
    "EPISODE_END",
    "JOINT_STATES",
    "NEXT_SCENE",
    "OBJECT_POSE",
    "RESET",
    "camera_frame",
    "camera_topic",
]

OBJECT_POSE = "lift/object_pose"
RESET = "lift/reset"
CLOCK = "/clock"


def camera_frame(name: str) -> str:
    """Frame of a camera's images: z forward, x right in the image (REP-103)."""
    return f"{camera_namespace(name)}_color_optical_frame"
