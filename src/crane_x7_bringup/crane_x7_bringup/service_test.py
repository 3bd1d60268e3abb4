from __future__ import annotations

import os
from pathlib import Path

import pytest

from crane_x7_bringup import service
from crane_x7_bringup.environment import GROUPS, VARIABLES, template
from crane_x7_bringup.profiles import configured, find_profile
from crane_x7_bringup.service import CAMERA_ARGUMENTS, SERVICES, camera_words, main, words
from crane_x7_vla.errors import CheckpointError, ConfigError


def model(folder: Path) -> str:
    """What is taken for a model before it is loaded."""
    (folder / "config.yaml").touch()
    return str(folder)


MOUNT_POINTS = service.mount_points


@pytest.fixture(autouse=True)
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a test is mounted, and nothing else."""
    monkeypatch.setattr(service, "mount_points", lambda: {tmp_path.resolve()})


def settings(name: str, environ: dict[str, str]) -> dict[str, dict[str, object]]:
    """{node: its parameters} that a service starts."""
    nodes = configured(find_profile(SERVICES[name].profile), words(name, environ))
    return {node.name: dict(node.parameters) for node in nodes}


@pytest.mark.parametrize("name", SERVICES)
def test_the_defaults_are_accepted_by_the_profile(name: str, tmp_path: Path) -> None:
    got = settings(name, {"VLA_MODEL_PATH": model(tmp_path), "VLA_DATA_ROOT": str(tmp_path)})
    assert got


def test_settings_reach_the_nodes(tmp_path: Path) -> None:
    recorder = settings(
        "recorder",
        {
            "VLA_DATA_ROOT": f"{tmp_path}/recordings",
            "VLA_INSTRUCTION": "1",
            "NUM_EPISODES": "010",
            "EPISODE_SECONDS": "2e1",
            "RESET_SECONDS": "1e-5",
            "CAMERA_NAMES": "primary, side",
            "CAMERA_TOPICS": "/a/image,/b/image",
            "LIFT_LOCKSTEP": "true",
            "CONTROL_HZ": "20",
        },
    )["recorder"]
    assert recorder["output_dir"] == f"{tmp_path}/recordings"
    assert recorder["instruction"] == "1"
    assert (recorder["num_episodes"], recorder["episode_seconds"], recorder["reset_seconds"]) == (10, 20.0, 1e-5)
    assert recorder["camera_names"] == ["primary", "side"]
    assert recorder["camera_topics"] == ["/a/image", "/b/image"]
    assert (recorder["lockstep"], recorder["control_hz"]) == (True, 20.0)
    sim = settings("sim", {"LIFT_SEED": "7", "LIFT_ENV_ID": "PickUp-CRANE-X7"})
    assert sim["sim"]["seed"] == 7
    assert sim["expert"]["env_id"] == sim["sim"]["env_id"] == "PickUp-CRANE-X7"
    assert settings("vla-sim-arm", {})["sim"]["auto_reset"] is True
    vla = settings("vla", {"VLA_MODEL_PATH": model(tmp_path), "VLA_DRY_RUN": "true", "VLA_AUTOSTART": "false"})
    assert (vla["vla_inference"]["dry_run"], vla["vla_inference"]["autostart"]) == (True, False)


def test_an_empty_value_is_the_default() -> None:
    assert words("sim", {"LIFT_SEED": " ", "CONTROL_HZ": ""}) == words("sim", {})


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("recorder", "NUM_EPISODES=ten", "NUM_EPISODES is 'ten', expected 0 or a positive integer"),
        ("recorder", "EPISODE_SECONDS=0", "EPISODE_SECONDS is '0', expected a positive number"),
        ("recorder", "EPISODE_SECONDS=inf", "EPISODE_SECONDS is 'inf', expected a positive number"),
        ("recorder", "RESET_SECONDS=-1", "RESET_SECONDS is '-1', expected 0 or a positive number"),
        ("recorder", "CAMERA_NAMES=primary,", "CAMERA_NAMES is 'primary,', expected names separated by commas"),
        ("recorder", "CAMERA_TOPICS=a b", "CAMERA_TOPICS is 'a b', expected topics separated by commas"),
        ("sim", "LIFT_LOCKSTEP=yes", "LIFT_LOCKSTEP is 'yes', expected true or false"),
        ("sim", "LIFT_ENV_ID={}", "LIFT_ENV_ID is '{}', expected a name"),
    ],
)
def test_a_senseless_value_is_one_line(
    name: str, line: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variable, _, value = line.partition("=")
    monkeypatch.setenv(variable, value)
    assert main([name]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {expected}")
    assert f"the default '{VARIABLES[variable].default}'" in said
    assert said.count("\n") == 1


def test_a_missing_model_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="VLA_MODEL_PATH is not set; expected a merged model or a checkpoint-N"):
        words("vla", {})


def test_an_adapter_folder_gives_the_merge_command(tmp_path: Path) -> None:
    adapters = tmp_path / "red_cube" / "checkpoint-10" / "lora_adapters"
    adapters.mkdir(parents=True)
    (adapters / "adapter_config.json").write_text('{"base_model_name_or_path": "openvla/openvla-7b"}')
    with pytest.raises(CheckpointError, match="Failed to load VLA model") as caught:
        words("vla", {"VLA_MODEL_PATH": str(adapters)})
    assert f"crane_x7_vla.scripts.merge_lora --adapter_path {adapters}" in str(caught.value)
    assert "--base_model openvla/openvla-7b" in str(caught.value)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"Failed to load VLA model: {tmp_path}/none does not exist"):
        words("vla-sim", {"VLA_MODEL_PATH": f"{tmp_path}/none"})


def test_a_folder_of_another_user_says_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot be written by user .* set USER_ID and GROUP_ID in .env"):
        words("recorder", {"VLA_DATA_ROOT": f"{tmp_path}/data/recordings"})


def test_mounts_are_those_of_the_kernel() -> None:
    points = MOUNT_POINTS()
    assert Path("/proc") in points
    assert Path("/") not in points


@pytest.mark.parametrize("place", ["recordings", "~/recordings", "{}/../elsewhere", "{}/link/recordings"])
def test_recordings_must_outlive_the_container(place: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/var")
    path = place.format(tmp_path)
    with pytest.raises(ConfigError, match=f"VLA_DATA_ROOT is {path}, which is not in data or outputs"):
        words("recorder", {"VLA_DATA_ROOT": path})


@pytest.mark.parametrize("topics", ["/a/image", "/a/image,/b/image,/c/image"])
def test_every_camera_has_its_topic(topics: str, tmp_path: Path) -> None:
    environ = {"VLA_DATA_ROOT": str(tmp_path), "CAMERA_NAMES": "primary,wrist", "CAMERA_TOPICS": topics}
    n_topics = topics.count(",") + 1
    with pytest.raises(ConfigError, match=f"CAMERA_TOPICS has {n_topics} topics and CAMERA_NAMES 2 names"):
        words("recorder", environ)


def test_cameras_are_given_by_serial_number_or_device(tmp_path: Path) -> None:
    device = tmp_path / "video0"
    device.touch()
    got = camera_words({"PRIMARY_CAMERA_SERIAL": "0123", "WRIST_CAMERA_DEVICE": str(device)})
    assert got == ["primary_serial:=0123", f"wrist_device:={device}", "width:=640", "height:=480", "fps:=30"]


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({}, "no camera is set; expected PRIMARY_CAMERA_SERIAL of a RealSense"),
        ({"PRIMARY_CAMERA_DEVICE": "/dev/video99"}, "PRIMARY_CAMERA_DEVICE is /dev/video99, which does not exist"),
        ({"WRIST_CAMERA_SERIAL": "1", "WRIST_CAMERA_DEVICE": "/dev/null"}, "are both set; expected one of them"),
        ({"PRIMARY_CAMERA_SERIAL": "a'b"}, "PRIMARY_CAMERA_SERIAL is 'a'b', expected letters and digits"),
        ({"PRIMARY_CAMERA_DEVICE": "/dev/null", "CAMERA_FPS": "0"}, "CAMERA_FPS is '0', expected a positive integer"),
    ],
)
def test_wrong_cameras_are_named(environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        camera_words(environ)


class ReplacedError(Exception):
    """Instead of becoming another program."""


def test_the_camera_drivers_run_under_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(_: str, command: list[str]) -> None:
        raise ReplacedError(command)

    monkeypatch.setattr(os, "execvp", replace)
    with pytest.raises(ReplacedError) as caught:
        service.start("cameras", {"PRIMARY_CAMERA_DEVICE": "/dev/null"})
    (command,) = caught.value.args
    assert command[:4] == ["ros2", "launch", "crane_x7_bringup", "cameras.launch.py"]
    assert "primary_device:=/dev/null" in command


def test_every_variable_has_one_line_and_a_default_that_makes_sense(tmp_path: Path) -> None:
    assert sum(len(group) for group in GROUPS.values()) == len(VARIABLES)
    for variable in VARIABLES.values():
        variable.value({})
        assert f"\n{variable.name}=" in template()
    read = {variable for each in SERVICES.values() for _, variable in each.arguments}
    assert read | {variable for _, variable in CAMERA_ARGUMENTS} <= set(VARIABLES)
    assert main(["--env-template", str(tmp_path / "file")]) == 0
    assert (tmp_path / "file").read_text() == template()
