"""Torques that carry the arm's weight, from the model file's masses alone; loads no simulator."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from importlib.resources import files

import numpy as np

from crane_x7_vla import kinematics

_G = 9.81
_LINKS = (
    "crane_x7_shoulder_revolute_part_link",
    "crane_x7_upper_arm_fixed_part_link",
    "crane_x7_upper_arm_revolute_part_link",
    "crane_x7_lower_arm_fixed_part_link",
    "crane_x7_lower_arm_revolute_part_link",
    "crane_x7_wrist_link",
    "crane_x7_gripper_base_link",
)


class GravityModel:
    """Weight of the links beyond each arm joint, and the servos' stiffness, read from ``assets/crane_x7.xml``."""

    def __init__(self) -> None:
        root = ET.parse(str(files("lift") / "assets" / "crane_x7.xml")).getroot()
        bodies = {body.get("name"): body for body in root.iter("body")}
        # (link it is fixed to, mass in kg, centre in m); what the fingers' opening moves is not worth mentioning.
        self._masses = [(index, *_mass(bodies[name])) for index, name in enumerate(_LINKS)]
        for finger in (bodies[f"crane_x7_gripper_finger_{side}_link"] for side in "ab"):
            mass, centre = _mass(finger)
            self._masses.append((len(_LINKS) - 1, mass, _vector(finger.get("pos")) + centre))
        classes = {item.get("class"): item.find("position") for item in root.iter("default")}
        stiffness = {name: float(item.get("kp", "nan")) for name, item in classes.items() if item is not None}
        actuators = root.find("actuator")
        if actuators is None:
            raise ValueError("assets/crane_x7.xml has no actuators")
        self._stiffness = np.array([stiffness[item.get("class")] for item in actuators][: len(_LINKS)])

    def torques(self, arm: np.ndarray) -> np.ndarray:
        """float64 [7] N m that the servos must give to hold ``arm`` [7] rad still."""
        poses = kinematics.link_poses(arm)
        torques = np.zeros(len(poses))
        for link, mass, centre in self._masses:
            place = poses[link][:3, :3] @ centre + poses[link][:3, 3]
            for joint in range(link + 1):
                direction = poses[joint][:3, :3] @ np.array(kinematics.JOINTS[joint][1])
                torques[joint] += mass * _G * np.cross(direction, place - poses[joint][:3, 3])[2]
        return torques

    def lead(self, arm: np.ndarray) -> np.ndarray:
        """float64 [7] rad by which a target must lead the joints so that the servos' springs carry the arm there."""
        return self.torques(arm) / self._stiffness


def _mass(body: ET.Element) -> tuple[float, np.ndarray]:
    inertial = body.find("inertial")
    if inertial is None:
        raise ValueError(f"link {body.get('name')} of assets/crane_x7.xml has no mass")
    return float(inertial.get("mass", "nan")), _vector(inertial.get("pos"))


def _vector(text: str | None) -> np.ndarray:
    return np.array([float(part) for part in (text or "0 0 0").split()])
