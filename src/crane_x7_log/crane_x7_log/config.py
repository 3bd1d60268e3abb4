"""Settings of the recorder, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crane_x7_log.sampling import COMMANDS, STATE
from crane_x7_vla.data.episode import STATE_SOURCE
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.robot import RobotSpec

COMMANDED_CHOICES = ("auto", "required", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderConfig:
    """How episodes are made of messages.

    cameras: their names. topics: of every source, that is the cameras, STATE, ARM_COMMAND and GRIPPER_COMMAND.
    hz: steps per second. lockstep: take only instants at which every source and both commands have the same stamp.
    commanded: whether ``action/commanded`` is recorded: auto if a controller was commanded by the first steps, required
    waits for a command to the arm, off never; in lockstep it always is. tolerance_s: messages further from their grid
    point count as missed. camera_max_age_s, joint_max_age_s: a source without a message that near is stale and ends the
    episode. frozen_camera_s: a camera that shows the same picture for so long while the arm moves ends it too; 0
    switches this off. timeout_s: without a step for so long the episode ends.
    """

    robot: RobotSpec
    cameras: tuple[str, ...]
    topics: Mapping[str, str]
    hz: float = 10.0
    lockstep: bool = False
    commanded: str = "auto"
    tolerance_s: float = 0.05
    camera_max_age_s: float = 0.5
    joint_max_age_s: float = 0.2
    frozen_camera_s: float = 2.0
    timeout_s: float = 10.0
    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ConfigError("camera_names is empty, expected at least one camera, such as primary")
        for taken in (STATE, *COMMANDS, STATE_SOURCE):
            if taken in self.cameras:
                raise ConfigError(f"a camera cannot be named '{taken}'; choose another name in camera_names")
        if len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"camera_names has a name twice: {', '.join(self.cameras)}")
        if self.commanded not in COMMANDED_CHOICES:
            raise ConfigError(f"commanded is '{self.commanded}', expected one of {', '.join(COMMANDED_CHOICES)}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"jpeg_quality is {self.jpeg_quality}, expected 1 to 100")
        for name, value in (
            ("control_hz", self.hz),
            ("tolerance_s", self.tolerance_s),
            ("camera_max_age_s", self.camera_max_age_s),
            ("joint_max_age_s", self.joint_max_age_s),
            ("timeout_s", self.timeout_s),
        ):
            if not value > 0:
                raise ConfigError(f"{name} is {value}, expected a positive number")
        if self.frozen_camera_s < 0:
            raise ConfigError(f"frozen_camera_s is {self.frozen_camera_s}, expected seconds, or 0 for no check")
