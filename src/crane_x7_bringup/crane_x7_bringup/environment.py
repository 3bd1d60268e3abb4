"""The variables of .env: one table, from which .env.template is written and the services take their settings.

docker-compose.yml names each of them with the same default (a test compares). An empty value means the default.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crane_x7_vla.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Kind:
    """expected: for messages. read: the text as YAML for NAME:=VALUE, None where it makes no sense."""

    expected: str
    read: Callable[[str], str | None]


def _number(text: str, accept: Callable[[float], bool]) -> str | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not (math.isfinite(number) and accept(number)):
        return None
    # Without a point YAML would take 1e-05 for text.
    written = repr(number)
    return written if "." in written else written.replace("e", ".0e")


def _integer(text: str, least: int) -> str | None:
    """With a zero in front YAML would take it for octal."""
    return str(int(text)) if re.fullmatch(r"\d+", text) and int(text) >= least else None


def _words(text: str, pattern: str) -> str | None:
    words = [word.strip() for word in text.split(",")] if text else []
    return json.dumps(words) if all(re.fullmatch(pattern, word) for word in words) else None


TEXT = Kind("text", lambda text: text)
NAME = Kind("a name", lambda text: text if re.fullmatch(r"[A-Za-z][\w-]*", text) else None)
SERIAL = Kind("letters and digits", lambda text: text if re.fullmatch(r"\w*", text) else None)
DEVICE = Kind("a path", lambda text: text if re.fullmatch(r"[\w./:-]*", text) else None)
COUNT = Kind("0 or a positive integer", lambda text: _integer(text, 0))
SIZE = Kind("a positive integer", lambda text: _integer(text, 1))
POSITIVE = Kind("a positive number", lambda text: _number(text, lambda number: number > 0))
SECONDS = Kind("0 or a positive number", lambda text: _number(text, lambda number: number >= 0))
SWITCH = Kind("true or false", lambda text: text if text in ("true", "false") else None)
NAMES = Kind("names separated by commas, such as primary,wrist", lambda text: _words(text, r"[A-Za-z]\w*") or None)
TOPICS = Kind("topics separated by commas, or nothing", lambda text: _words(text, r"/?[A-Za-z][\w/]*"))


@dataclass(frozen=True, slots=True)
class Variable:
    """A line of .env."""

    name: str
    default: str
    description: str
    kind: Kind = TEXT

    def value(self, environ: Mapping[str, str]) -> str:
        """Its value, or the default. Raises ConfigError saying what was expected."""
        text = environ.get(self.name, "").strip() or self.default
        value = self.kind.read(text)
        if value is None:
            raise ConfigError(
                f"{self.name} is '{text}', expected {self.kind.expected}; correct it in .env, or leave it empty for "
                f"the default '{self.default}'"
            )
        return value


GROUPS: Mapping[str, tuple[Variable, ...]] = {
    "Who the containers run as, so that what they write is yours: the output of id -u and id -g.": (
        Variable("USER_ID", "1000", "user"),
        Variable("GROUP_ID", "1000", "group"),
    ),
    "Folders and models. Relative paths are inside the containers' /workspace, where data and outputs are mounted.": (
        Variable("DATA_DIR", "./data", "folder of this machine that is mounted as data; it must exist"),
        Variable("OUTPUTS_DIR", "./outputs", "folder of this machine that is mounted as outputs; it must exist"),
        Variable("VLA_DATA_ROOT", "data/tfrecord_logs", "recordings: written by log, read by training"),
        Variable("VLA_OUTPUT_DIR", "outputs", "training runs"),
        Variable("VLA_MODEL_PATH", "", "merged model or checkpoint-N that drives the arm: outputs/red_cube_merged"),
        Variable(
            "HF_CACHE_DIR",
            "huggingface",
            "downloaded models: a volume's name, or a folder such as ~/.cache/huggingface",
        ),
        Variable("HF_TOKEN", "", "Hugging Face token, for models that ask for one"),
    ),
    "Task and recording (profile log).": (
        Variable("VLA_INSTRUCTION", "pick up the red cube", "the task in words, recorded and given to the model"),
        Variable("NUM_EPISODES", "10", "episodes to record, then the recorder ends; 0: start each by hand", COUNT),
        Variable("EPISODE_SECONDS", "20", "longest episode, s; a simulated one ends with its task", POSITIVE),
        Variable("RESET_SECONDS", "5", "pause before the next episode, to restore the scene, s", SECONDS),
        Variable("CAMERA_NAMES", "primary,wrist", "cameras to record", NAMES),
        Variable(
            "CAMERA_TOPICS",
            "",
            "their image topics; empty: camera/color/image_raw for primary, camera_NAME/color/image_raw for NAME",
            TOPICS,
        ),
        Variable("CONTROL_HZ", "10.0", "steps per second of recordings, simulator and policy", POSITIVE),
    ),
    "Cameras (profile real): each by a RealSense's serial number or by a video device.": (
        Variable("PRIMARY_CAMERA_SERIAL", "", "of the camera that sees the scene", SERIAL),
        Variable("PRIMARY_CAMERA_DEVICE", "", "such as /dev/video0", DEVICE),
        Variable("WRIST_CAMERA_SERIAL", "", "of the camera on the gripper", SERIAL),
        Variable("WRIST_CAMERA_DEVICE", "", "such as /dev/video2", DEVICE),
        Variable("CAMERA_WIDTH", "640", "pixels", SIZE),
        Variable("CAMERA_HEIGHT", "480", "pixels", SIZE),
        Variable("CAMERA_FPS", "30", "images per second", SIZE),
    ),
    "Simulator (profiles sim and vla-sim).": (
        Variable("LIFT_SIMULATOR", "mujoco", "simulator", NAME),
        Variable("LIFT_ENV_ID", "PickUp-CRANE-X7", "task", NAME),
        Variable("LIFT_SEED", "0", "seed of the first episode", COUNT),
        Variable("LIFT_LOCKSTEP", "false", "wait for the command of each instant; the same for every service", SWITCH),
    ),
    "Inference (profiles vla and vla-sim).": (
        Variable("VLA_DEVICE", "auto", "cpu, cuda or cuda:N; auto takes a GPU where there is one"),
        Variable(
            "VLA_AUTOSTART", "true", "drive as soon as everything is seen; false: wait for the start call", SWITCH
        ),
        Variable("VLA_DRY_RUN", "false", "do everything but send commands", SWITCH),
    ),
    "Training (profiles train, openvla and openpi).": (
        Variable("VLA_BACKEND", "openvla-oft", "backend of profile train"),
        Variable("VLA_EXPERIMENT", "crane_x7_vla", "name of its run, a folder in outputs"),
        Variable("WANDB_API_KEY", "", "Weights & Biases, used where WANDB_MODE is not disabled"),
        Variable("WANDB_MODE", "disabled", "online, offline or disabled"),
        Variable("SHM_SIZE", "16gb", "shared memory of a training container"),
    ),
    "GPUs.": (
        Variable("GPU_COUNT", "all", "GPUs that training reserves"),
        Variable("CUDA_VISIBLE_DEVICES", "0", "which of them are used: 0,1 for two"),
        Variable("VLA_RUNTIME", "runc", "nvidia: inference on a GPU too (build with TORCH=cuda)"),
    ),
    "Network.": (
        Variable("ROS_DOMAIN_ID", "0", "of every service, and of the arm's driver"),
        Variable("DDS_PROFILE", "/opt/crane_x7/dds_big_images.xml", "XML file with the settings of Fast DDS"),
    ),
    "Images. After a change: docker compose --profile … build": (
        Variable("ROS_DISTRO", "jazzy", "jazzy or humble"),
        Variable("TORCH", "cpu", "torch of the ROS image: none, cpu or cuda"),
        Variable("TORCH_VERSION", "2.13.0", "torch of both images"),
        Variable("CUDA_SHORT", "cu130", "CUDA that torch was built with"),
        Variable("CUDA_VERSION", "12.9.1", "base of the training image: nvidia/cuda"),
        Variable("PYTHON_VERSION", "3.11", "of the training image"),
        Variable("BUILD_TARGET", "base", "stage of the training image: base, or dev with TensorFlow"),
    ),
}
VARIABLES: Mapping[str, Variable] = {variable.name: variable for group in GROUPS.values() for variable in group}


def template() -> str:
    """The text of .env.template: every variable with its default, grouped."""
    parts = [
        "# Settings of the containers: cp .env.template .env, and change what you need. Every line shows its default;\n"
        "# an empty value means it too. Only compose reads it. Training outside of containers takes VLA_DATA_ROOT and\n"
        "# VLA_OUTPUT_DIR from the shell: export those there, and not this file.\n"
        "# This file is written by: python -m crane_x7_bringup.service --env-template .env.template\n"
    ]
    for heading, group in GROUPS.items():
        lines = [f"# {variable.description}\n{variable.name}={_quoted(variable.default)}\n" for variable in group]
        parts.append(f"# -- {heading}\n{''.join(lines)}")
    return "\n".join(parts)


def _quoted(value: str) -> str:
    """As a shell and compose both read it."""
    return shlex.quote(value) if value else ""
