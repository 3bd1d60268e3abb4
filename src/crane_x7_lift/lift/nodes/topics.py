"""Names of what the simulated arm publishes and offers, relative so that they can be remapped.

Joint states, images and trajectories have the real arm's names; what only a simulator knows is under ``lift/``.
"""

from __future__ import annotations

JOINT_STATES = "joint_states"
OBJECT_POSE = "lift/object_pose"
EPISODE = "lift/episode"
RESET = "lift/reset"
CLOCK = "/clock"


def camera_topic(name: str) -> str:
    """Image topic of a camera, as the RealSense driver names it."""
    return f"{_camera(name)}/color/image_raw"


def camera_frame(name: str) -> str:
    """Frame of a camera's images: z forward, x right in the image (REP-103)."""
    return f"{_camera(name)}_color_optical_frame"


def _camera(name: str) -> str:
    return "camera" if name == "primary" else f"camera_{name}"
