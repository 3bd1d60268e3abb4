from __future__ import annotations

from typing import Any

import pytest

from crane_x7_vla.errors import ConfigError
from lift import make_env
from lift.interface import CameraView

PRIMARY = CameraView(name="primary", width=32, height=24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"simulator": "gazebo"}, "unknown simulator 'gazebo'; known: mujoco"),
        ({"env_id": "PickUp-UR5"}, "unknown environment 'PickUp-UR5'; known: PickUp-CRANE-X7"),
        ({"num_envs": 0}, "num_envs is 0; expected 1 or more"),
        ({"max_steps": -1}, "max_steps is -1; expected 1 or more"),
        ({"control_hz": 0.0}, "control_hz is 0; expected"),
        ({"control_hz": float("nan")}, "control_hz is nan; expected"),
        ({"control_hz": 30.0}, "control_hz is 30, but .* whole number of 10 ms; expected for example 5, 10, 20"),
        ({"control_hz": 1000.0}, "control_hz is 1000, but"),
        ({"disturbance": -0.1}, "disturbance is -0.1; expected"),
        ({"disturbance": float("inf")}, "disturbance is inf; expected"),
        ({"cameras": (PRIMARY, PRIMARY)}, "cameras are primary, primary; expected each name once"),
        (
            {"cameras": (PRIMARY, CameraView(name="rear", width=32, height=24))},
            "unknown camera 'rear'; the scene has primary, wrist",
        ),
        (
            {"cameras": (CameraView(name="primary", width=4000, height=24),)},
            "images of camera 'primary' are to be 4000 x 24 pixels; expected 1 x 1 to 1280 x 960",
        ),
        ({"cameras": (CameraView(name="primary", width=32, height=0),)}, "32 x 0 pixels; expected"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    settings = {"simulator": "mujoco", "env_id": "PickUp-CRANE-X7", "cameras": (), **settings}
    with pytest.raises(ConfigError, match=message):
        make_env(settings.pop("simulator"), settings.pop("env_id"), **settings)
