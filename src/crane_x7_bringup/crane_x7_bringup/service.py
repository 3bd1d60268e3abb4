"""What a container of docker-compose.yml runs: python3 -m crane_x7_bringup.service NAME.

Reads its settings from the environment, checks them, and starts the nodes of a profile of ``crane_x7_bringup.up`` (or
the camera drivers). Without a name nothing is started; ``--env-template`` writes .env.template from the table here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crane_x7_bringup.environment import VARIABLES, template
from crane_x7_bringup.profiles import find_profile
from crane_x7_bringup.up import run
from crane_x7_vla.command import run_command
from crane_x7_vla.errors import ConfigError

# What a merged model and a checkpoint-N have, and LoRA adapters alone have not.
_MODEL_FILE = "config.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """profile: of crane_x7_bringup.up. arguments: (NAME of NAME:=VALUE, variable). fixed: arguments without one."""

    profile: str
    arguments: tuple[tuple[str, str], ...]
    fixed: tuple[str, ...] = ()


_RATE = (("lockstep", "LIFT_LOCKSTEP"), ("control_hz", "CONTROL_HZ"))
_SIM = (("sim.simulator", "LIFT_SIMULATOR"), ("sim.env_id", "LIFT_ENV_ID"), ("seed", "LIFT_SEED"), *_RATE)
_VLA = (
    ("model_path", "VLA_MODEL_PATH"),
    ("instruction", "VLA_INSTRUCTION"),
    ("device", "VLA_DEVICE"),
    ("autostart", "VLA_AUTOSTART"),
    ("vla_inference.dry_run", "VLA_DRY_RUN"),
    *_RATE,
)
SERVICES: Mapping[str, Service] = {
    "recorder": Service(
        profile="log",
        arguments=(
            ("output_dir", "VLA_DATA_ROOT"),
            ("instruction", "VLA_INSTRUCTION"),
            ("recorder.num_episodes", "NUM_EPISODES"),
            ("recorder.episode_seconds", "EPISODE_SECONDS"),
            ("recorder.reset_seconds", "RESET_SECONDS"),
            ("recorder.camera_names", "CAMERA_NAMES"),
            ("recorder.camera_topics", "CAMERA_TOPICS"),
            *_RATE,
        ),
    ),
    "sim": Service(profile="expert-sim", arguments=(*_SIM, ("expert.env_id", "LIFT_ENV_ID"))),
    "vla": Service(profile="vla", arguments=_VLA),
    "vla-sim-arm": Service(profile="sim", arguments=_SIM, fixed=("auto_reset:=true",)),
    "vla-sim": Service(profile="vla", arguments=_VLA),
}
CAMERAS = "cameras"
CAMERA_LAUNCH = ("crane_x7_bringup", "cameras.launch.py")
CAMERA_ARGUMENTS = (
    ("primary_serial", "PRIMARY_CAMERA_SERIAL"),
    ("primary_device", "PRIMARY_CAMERA_DEVICE"),
    ("wrist_serial", "WRIST_CAMERA_SERIAL"),
    ("wrist_device", "WRIST_CAMERA_DEVICE"),
    ("width", "CAMERA_WIDTH"),
    ("height", "CAMERA_HEIGHT"),
    ("fps", "CAMERA_FPS"),
)


def words(name: str, environ: Mapping[str, str]) -> list[str]:
    """NAME:=VALUE of each setting of a service. Raises ConfigError for a value that is missing or makes no sense."""
    service = SERVICES[name]
    values = {variable: VARIABLES[variable].value(environ) for _, variable in service.arguments}
    if "VLA_MODEL_PATH" in values:
        _check_model(values["VLA_MODEL_PATH"])
    if "VLA_DATA_ROOT" in values:
        _check_kept(values["VLA_DATA_ROOT"])
        _check_writable(values["VLA_DATA_ROOT"])
    if "CAMERA_TOPICS" in values:
        _check_topics(values["CAMERA_NAMES"], values["CAMERA_TOPICS"])
    given = [f"{argument}:={values[variable]}" for argument, variable in service.arguments]
    return [*given, *service.fixed]


def camera_words(environ: Mapping[str, str]) -> list[str]:
    """NAME:=VALUE of each argument of cameras.launch.py that has a value. Raises ConfigError as ``words``."""
    values = {variable: VARIABLES[variable].value(environ) for _, variable in CAMERA_ARGUMENTS}
    for camera in ("PRIMARY", "WRIST"):
        serial, device = f"{camera}_CAMERA_SERIAL", f"{camera}_CAMERA_DEVICE"
        if values[serial] and values[device]:
            raise ConfigError(f"{serial} and {device} are both set; expected one of them; remove the other from .env")
        if values[device] and not Path(values[device]).exists():
            raise ConfigError(
                f"{device} is {values[device]}, which does not exist; expected a video device. List them with: "
                "ls /dev/v4l/by-id"
            )
    if not any(values[name] for name in values if name.endswith(("_SERIAL", "_DEVICE"))):
        raise ConfigError(
            "no camera is set; expected PRIMARY_CAMERA_SERIAL of a RealSense (list them with: rs-enumerate-devices -s) "
            "or PRIMARY_CAMERA_DEVICE such as /dev/video0; put it in .env"
        )
    return [f"{argument}:={values[variable]}" for argument, variable in CAMERA_ARGUMENTS if values[variable]]


def _check_model(path: str) -> None:
    if not path:
        raise ConfigError(
            "VLA_MODEL_PATH is not set; expected a merged model or a checkpoint-N, such as outputs/red_cube_merged; "
            "put it in .env"
        )
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("this image has no torch; build it with: TORCH=cpu docker compose --profile vla build")
    if not (Path(path) / _MODEL_FILE).is_file():
        # No model; loading it says in what way, before any node is started. It takes seconds to import.
        from crane_x7_vla.policies.policy import load_policy

        load_policy(Path(path))


def _check_topics(names: str, topics: str) -> None:
    """names, topics: lists in JSON."""
    n_names, n_topics = len(json.loads(names)), len(json.loads(topics))
    if n_topics not in (0, n_names):
        raise ConfigError(
            f"CAMERA_TOPICS has {n_topics} topics and CAMERA_NAMES {n_names} names; expected one topic for each name "
            "in the same order, or no topics; correct it in .env"
        )


def mount_points() -> set[Path]:
    """Folders and files below the root on which something is mounted, as the kernel lists them."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return {Path(line.split()[4]) for line in lines} - {Path("/")}


def _check_kept(path: str) -> None:
    """What lies in no mount is part of the container, and gone with it."""
    folder = Path(path).expanduser().resolve()
    if mount_points().isdisjoint((folder, *folder.parents)):
        raise ConfigError(
            f"VLA_DATA_ROOT is {path}, which is not in data or outputs, so that it would be lost with the container; "
            "expected such as data/red_cube; correct it in .env. For another disk set DATA_DIR to its folder"
        )


def _check_writable(path: str) -> None:
    folder = Path(path).expanduser().resolve()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        owner = folder.stat()
        raise ConfigError(
            f"{folder} cannot be written by user {os.getuid()}:{os.getgid()}, it belongs to "
            f"{owner.st_uid}:{owner.st_gid}; set USER_ID and GROUP_ID in .env to the output of id -u and id -g"
        )


def start(name: str, environ: Mapping[str, str]) -> int:
    """Run a service until it ends; its exit code."""
    if name == CAMERAS:
        command = ["ros2", "launch", *CAMERA_LAUNCH, *camera_words(environ)]
        # Signals then go to launch, which ends the drivers.
        os.execvp(command[0], command)
    return run(find_profile(SERVICES[name].profile), words(name, environ), log_dir=_log_dir(name))


def _log_dir(name: str) -> Path:
    return Path(tempfile.gettempdir()) / "crane_x7" / name


def _command(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m crane_x7_bringup.service", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("name", nargs="?", choices=[*SERVICES, CAMERAS], help="service of docker-compose.yml")
    what.add_argument("--env-template", type=Path, metavar="FILE", help="write the table of variables to FILE")
    options = parser.parse_args(argv)
    if options.env_template is not None:
        options.env_template.write_text(template(), encoding="utf-8")
        return 0
    return start(options.name, os.environ)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: that of the node that ended first, 0 after a signal, 2 for what the user can mend."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
