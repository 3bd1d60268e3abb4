"""What the inference node says of settings and models that make no sense, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ros


def run_once(*parameters: str) -> subprocess.CompletedProcess[str]:
    words = [word for parameter in parameters for word in ("-p", parameter)]
    return subprocess.run(
        [sys.executable, "-m", "crane_x7_vla.nodes.inference_node", "--ros-args", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF", "ROS_LOG_DIR": os.environ.get("TMPDIR", "/tmp")},
    )


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ((), "vla_inference: Failed to load VLA model: parameter 'model_path' is not set"),
        (("model_path:=/nowhere",), "vla_inference: Failed to load VLA model: /nowhere does not exist"),
        (
            ("gripper_interface:=action",),
            "vla_inference: gripper_interface is 'action', which needs the package control",
        ),
        (("gripper_interface:=hand",), "vla_inference: gripper_interface is 'hand', expected one of auto, trajectory"),
        (("velocity_scale:=2.0",), "vla_inference: safety velocity_scale must be in (0, 1], got 2.0"),
        (("instruction:=''",), "vla_inference: parameter 'instruction' is empty"),
        (("command_hz:=5.0",), "vla_inference: command_hz is 5, expected at least control_hz 10"),
        (("device:=7",), "vla_inference: parameter 'device' must be a string, got 7"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_2(parameters: tuple[str, ...], line: str) -> None:
    done = run_once(*parameters)
    assert done.returncode == 2
    assert done.stderr.startswith(line), done.stderr
    assert done.stderr.count("\n") == 1


def test_an_adapter_folder_names_the_merge_command(tiny_checkpoint: Path) -> None:
    done = run_once(f"model_path:={tiny_checkpoint / 'lora_adapters'}")
    assert done.returncode == 2
    assert done.stderr.startswith("vla_inference: Failed to load VLA model: ")
    assert "merge first with: python -m crane_x7_vla.scripts.merge_lora --adapter_path" in done.stderr
    assert done.stderr.count("\n") == 1


def test_another_control_rate_than_the_policys_names_both(tiny_checkpoint: Path) -> None:
    done = run_once(f"model_path:={tiny_checkpoint}", "control_hz:=20.0", "device:=cpu")
    assert done.returncode == 2
    assert "control_hz is 20, but the policy was trained at 10 Hz; set control_hz:=10" in done.stderr
