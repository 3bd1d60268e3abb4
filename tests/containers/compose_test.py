"""The compose file, the Dockerfiles and .env.template say what they should, without an engine."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from crane_x7_bringup import camera_health
from crane_x7_bringup.environment import VARIABLES, template
from crane_x7_bringup.profiles import PROFILES, find_profile
from crane_x7_bringup.service import CAMERA_ARGUMENTS, CAMERA_LAUNCH, CAMERAS, SERVICES
from crane_x7_vla.training.arguments import TrainCommand, parse_command

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILES = ("Dockerfile.ros", "Dockerfile.train")

EXPECTED = {
    "log": {"recorder"},
    "sim": {"sim"},
    "real": {"cameras"},
    "vla": {"vla"},
    "vla-sim": {"vla-sim-arm", "vla-sim"},
    "train": {"train"},
    "openvla": {"vla-finetune-openvla"},
    "openpi": {"vla-finetune-openpi"},
    "demo": {"demo"},
}
ALL = sorted(set().union(*EXPECTED.values()))
TRAINING = ["train", "vla-finetune-openpi", "vla-finetune-openvla"]
ROS = sorted(set(ALL) - set(TRAINING))
INFERENCE = {"vla", "vla-sim"}

DATA = ("/workspace/data", str(ROOT / "data"))
OUTPUTS = ("/workspace/outputs", str(ROOT / "outputs"))
CACHE = ("/home/vla/.cache/huggingface", "huggingface")
SOURCE = ("/workspace/vla/src", str(ROOT / "src"))
VOLUMES = {
    "recorder": {DATA},
    "sim": set(),
    "cameras": {("/dev", "/dev")},
    "vla": {OUTPUTS, CACHE},
    "vla-sim-arm": set(),
    "vla-sim": {OUTPUTS, CACHE},
    "demo": {DATA, OUTPUTS},
    **{name: {DATA, OUTPUTS, CACHE, SOURCE} for name in TRAINING},
}

# Executables of packages from apt that launch files start.
FOREIGN = {("realsense2_camera", "realsense2_camera_node"), ("v4l2_camera", "v4l2_camera_node")}

Json = dict[str, Any]


class Compose(Protocol):
    """``docker compose``, with variables in the shell and no .env."""

    def __call__(self, *words: str, **variables: str) -> str: ...


@pytest.fixture(scope="module")
def compose(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Compose:
    """Runs it against the shipped file, whatever .env lies beside that."""
    home = tmp_path_factory.mktemp("home")
    empty = home / "env"
    empty.touch()
    plugins = home / ".docker" / "cli-plugins"
    plugins.parent.mkdir()
    plugins.symlink_to(tools / "usr" / "libexec" / "docker" / "cli-plugins")
    command = [str(tools / "usr" / "bin" / "docker"), "compose", "--file", str(COMPOSE_FILE), "--env-file", str(empty)]

    def run(*words: str, **variables: str) -> str:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), **variables}
        done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def services(compose: Compose) -> Json:
    """Every service, as compose understands it."""
    return json.loads(compose("--profile", "*", "config", "--format", "json"))["services"]


# -- compose file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", EXPECTED)
def test_a_profile_has_its_services(profile: str, compose: Compose) -> None:
    assert set(compose("--profile", profile, "config", "--services").split()) == EXPECTED[profile]


def test_nothing_starts_without_a_profile_and_no_service_is_forgotten(compose: Compose, services: Json) -> None:
    assert compose("config", "--services").split() == []
    assert sorted(services) == ALL
    assert {profile for service in services.values() for profile in service["profiles"]} == set(EXPECTED)


@pytest.mark.parametrize("name", ALL)
def test_a_service_runs_as_the_users_and_ends_well(name: str, services: Json) -> None:
    service = services[name]
    assert service["user"] == "1000:1000"
    assert service["init"] is True
    grace = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", service["stop_grace_period"])
    assert grace is not None
    assert int(grace[1] or 0) * 60 + int(grace[2] or 0) >= 30
    assert service["restart"] == "no"
    # ros2 launch leaves its nodes on SIGTERM.
    assert service.get("stop_signal") == ("SIGINT" if name == CAMERAS else None)


@pytest.mark.parametrize("name", TRAINING)
def test_training_is_reached_from_this_machine_only(name: str, services: Json) -> None:
    service = services[name]
    assert "network_mode" not in service
    (port,) = service["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "6006", 6006)


def test_user_and_group_come_from_the_environment(compose: Compose) -> None:
    text = compose("--profile", "*", "config", "--format", "json", USER_ID="4321", GROUP_ID="8765")
    for service in json.loads(text)["services"].values():
        assert service["user"] == "4321:8765"
        assert service["build"]["args"]["USER_ID"] == "4321"
        assert service["build"]["args"]["GROUP_ID"] == "8765"


@pytest.mark.parametrize("name", ROS)
def test_dds_has_the_hosts_network_and_its_memory(name: str, services: Json) -> None:
    """Network without memory lets no message through."""
    service = services[name]
    assert service["network_mode"] == "host"
    assert service["ipc"] == "host"
    assert service["image"] == "crane_x7_ros:jazzy"
    if name == "demo":
        assert "ROS_DOMAIN_ID" not in (service.get("environment") or {})
        return
    environment = service["environment"]
    assert environment["ROS_DOMAIN_ID"] == "0"
    for variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        assert environment[variable] == "/opt/crane_x7/dds_big_images.xml"
    (copied,) = re.findall(r"cp (src/\S*dds_big_images\.xml) \.", (ROOT / "Dockerfile.ros").read_text())
    assert (ROOT / copied).is_file()


@pytest.mark.parametrize("name", ALL)
def test_mounts(name: str, services: Json) -> None:
    volumes = services[name].get("volumes", [])
    assert {(volume["target"], volume["source"]) for volume in volumes} == VOLUMES[name]
    for volume in volumes:
        if volume["target"] in (DATA[0], OUTPUTS[0]):
            # Docker would make a missing folder as root; these are in the repository.
            assert not volume["bind"].get("create_host_path", False)
            tracked = f"{Path(volume['source']).name}/.gitkeep"
            assert git("ls-files", tracked) == f"{tracked}\n"
        assert bool(volume.get("read_only")) == (volume["target"] == SOURCE[0])


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_folders_and_cache_can_lie_elsewhere(compose: Compose) -> None:
    variables = {"DATA_DIR": "/mnt/data", "OUTPUTS_DIR": "/mnt/outputs", "HF_CACHE_DIR": "/mnt/cache"}
    text = compose("--profile", "train", "config", "--format", "json", **variables)
    volumes = {volume["target"]: volume for volume in json.loads(text)["services"]["train"]["volumes"]}
    assert volumes[DATA[0]]["source"] == "/mnt/data"
    assert volumes[OUTPUTS[0]]["source"] == "/mnt/outputs"
    assert (volumes[CACHE[0]]["type"], volumes[CACHE[0]]["source"]) == ("bind", "/mnt/cache")


@pytest.mark.parametrize("name", ALL)
def test_gpus_are_for_training_and_at_wish_for_inference(name: str, services: Json, compose: Compose) -> None:
    service = services[name]
    assert ("deploy" in service) == (name in TRAINING)
    assert service.get("runtime") == ("runc" if name in INFERENCE else None)
    if name in TRAINING:
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}
        assert int(service["shm_size"]) == 16 << 30
        assert "ipc" not in service
    if name in INFERENCE:
        text = compose("--profile", "*", "config", "--format", "json", VLA_RUNTIME="nvidia")
        assert json.loads(text)["services"][name]["runtime"] == "nvidia"
        assert service["environment"]["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_who_waits_for_whom(services: Json) -> None:
    waits = {name: service["depends_on"] for name, service in services.items() if "depends_on" in service}
    beside = {other: {"condition": "service_healthy", "required": False} for other in ("sim", "cameras")}
    assert waits == {
        "recorder": beside,
        "vla": beside,
        "vla-sim": {"vla-sim-arm": {"condition": "service_healthy", "required": True}},
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_of_nodes_is_healthy_when_its_nodes_are(name: str, services: Json) -> None:
    test = services[name]["healthcheck"]["test"]
    assert test[:4] == ["CMD", "python3", "-m", "crane_x7_bringup.health"]
    assert test[4:] == [node.name for node in find_profile(SERVICES[name].profile).nodes]


def test_cameras_are_healthy_when_images_come(services: Json) -> None:
    check = services["cameras"]["healthcheck"]["test"]
    assert check == ["CMD", "in_workspace", "python3", "-m", camera_health.__name__]
    given = services["cameras"]["environment"]
    assert camera_health.topics({**given, "WRIST_CAMERA_SERIAL": "1"}) == ["camera_wrist/color/image_raw"]


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_command_of_a_service_is_there(name: str, services: Json) -> None:
    python, flag, module, *words = services[name]["command"]
    assert python == ("python" if name in TRAINING else "python3")
    assert flag == "-m"
    assert importlib.util.find_spec(module) is not None
    if module == "crane_x7_bringup.service":
        assert words == [name]
        assert name in {*SERVICES, CAMERAS}
    if name == "demo":
        assert words == ["--data-root", "data/demo"]
        assert VARIABLES["VLA_DATA_ROOT"].default not in words


@pytest.mark.parametrize("name", [*SERVICES, CAMERAS])
def test_a_service_is_given_the_variables_that_it_reads(name: str, services: Json) -> None:
    arguments = CAMERA_ARGUMENTS if name == CAMERAS else SERVICES[name].arguments
    given = services[name]["environment"]
    for _, variable in arguments:
        assert given[variable] == VARIABLES[variable].default


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("train", {"experiment_name": "crane_x7_vla"}),
        ("vla-finetune-openvla", {"experiment_name": "crane_x7_openvla", "training.batch_size": 16}),
        ("vla-finetune-openpi", {"experiment_name": "crane_x7_openpi", "training.learning_rate": 3e-4}),
    ],
)
def test_training_commands_are_understood(name: str, values: Json, services: Json) -> None:
    words = services[name]["command"][3:]
    environ = {key: value for key, value in services[name]["environment"].items() if key.startswith("VLA_")}
    backend = {"vla-finetune-openvla": "openvla", "vla-finetune-openpi": "openpi", "train": "openvla-oft"}[name]
    assert backend in words
    # The flags are every backend's, also of the one that the table does not have yet.
    command = parse_command(["openvla" if word == "openpi" else word for word in words], environ=environ)
    assert isinstance(command, TrainCommand)
    for path, value in values.items():
        section, _, field = path.rpartition(".")
        holder = getattr(command.config, section) if section else command.config
        assert getattr(holder, field) == value
    assert command.config.data.data_root == "data/tfrecord_logs"
    assert command.config.output_dir == "outputs"


def test_names_of_the_fine_tuning_services(services: Json) -> None:
    for backend in ("openvla", "openpi"):
        service = services[f"vla-finetune-{backend}"]
        assert service["container_name"] == f"crane_x7_vla_finetune_{backend}"
        assert service["image"] == f"crane_x7_vla:{backend}"
    assert services["train"]["image"] == "crane_x7_vla:latest"


# -- variables --------------------------------------------------------------------------------------------------------


def test_env_template_is_written_from_the_table() -> None:
    again = "python -m crane_x7_bringup.service --env-template .env.template"
    assert (ROOT / ".env.template").read_text() == template(), f"write it again with: {again}"


def test_env_template_is_the_default_for_a_shell_and_for_compose(compose: Compose, services: Json) -> None:
    shell = subprocess.run(
        ["bash", "-euc", 'set -a; . "$0"; env -0', ROOT / ".env.template"],
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    got = dict(line.split("=", 1) for line in shell.stdout.split("\0") if line)
    assert {name: got[name] for name in VARIABLES} == {name: each.default for name, each in VARIABLES.items()}
    text = compose("--env-file", str(ROOT / ".env.template"), "--profile", "*", "config", "--format", "json")
    assert json.loads(text)["services"] == services


def test_a_later_line_of_env_wins(compose: Compose, tmp_path: Path) -> None:
    """As the documents add USER_ID to a copy of the template."""
    file = tmp_path / "env"
    file.write_text(f"{template()}USER_ID=4321\nGROUP_ID=8765\n")
    text = compose("--env-file", str(file), "--profile", "log", "config", "--format", "json")
    assert json.loads(text)["services"]["recorder"]["user"] == "4321:8765"


def test_the_compose_file_names_every_variable_with_its_default() -> None:
    text = "\n".join(line.partition(" #")[0] for line in COMPOSE_FILE.read_text().splitlines())
    named = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    assert text.count("${") == len(re.findall(r"\$\{\w+:-[^}]*\}", text)), "every variable has a default, after :-"
    assert named == {name: variable.default for name, variable in VARIABLES.items()}


def test_a_variable_has_one_default_everywhere() -> None:
    text = COMPOSE_FILE.read_text()
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", text):
        assert default == VARIABLES[name].default, name
    for file in DOCKERFILES:
        for name, default in re.findall(r"^ARG (\w+)=(\S+)", (ROOT / file).read_text(), flags=re.MULTILINE):
            assert name == "UV_VERSION" or default == VARIABLES[name].default, f"{file}: {name}"


def test_build_arguments_are_those_of_the_dockerfiles(services: Json) -> None:
    for file in DOCKERFILES:
        taken = set(re.findall(r"^ARG (\w+)", (ROOT / file).read_text(), flags=re.MULTILINE)) - {"UV_VERSION"}
        for service in services.values():
            if service["build"]["dockerfile"] == file:
                assert set(service["build"]["args"]) == taken


# -- Dockerfiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", DOCKERFILES)
def test_hadolint(file: str) -> None:
    command = [str(Path(sys.executable).with_name("hadolint")), "--no-color", str(ROOT / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", DOCKERFILES)
def test_what_a_dockerfile_copies_is_sent_to_the_engine(file: str) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)", (ROOT / file).read_text(), flags=re.MULTILINE):
        *sources, _ = shlex.split(line)
        for source in sources:
            assert (ROOT / source).exists(), source
            assert Path(source).parts[0] in sent, f"{source} is not in .dockerignore's list"


# -- launch files and the built workspace -----------------------------------------------------------------------------


LAUNCH_FILES = sorted(ROOT.glob("src/*/launch/*.launch.py"))
INSTALL = ROOT / "install"


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def literal(call: ast.Call, name: str) -> str:
    (value,) = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return ast.literal_eval(value)


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_what_a_launch_file_names_is_in_the_built_workspace(path: Path) -> None:
    package = path.parents[1].name
    assert (INSTALL / package / "share" / package / "launch" / path.name).exists(), "build it with: make setup"
    tree = ast.parse(path.read_text())
    for node in calls(tree, "Node"):
        check_executable(literal(node, "package"), literal(node, "executable"))
    for joined in calls(tree, "PathJoinSubstitution"):
        (parts,) = joined.args
        assert isinstance(parts, ast.List)
        share, *rest = parts.elts
        assert isinstance(share, ast.Call)
        named = ast.literal_eval(share.args[0])
        file = Path(*[ast.literal_eval(part) for part in rest])
        assert (INSTALL / named / "share" / named / file).exists(), f"{path.name} names {named}/{file}"
        assert f"<exec_depend>{named}</exec_depend>" in manifest(package) or named == package


def check_executable(package: str, executable: str) -> None:
    if (ROOT / "src" / package).is_dir():
        assert (INSTALL / package / "lib" / package / executable).exists(), f"{package} has no {executable}"
    else:
        assert (package, executable) in FOREIGN
        debian = f"ros-${{ROS_DISTRO}}-{package.replace('_', '-')}"
        assert debian in (ROOT / "Dockerfile.ros").read_text(), f"the image does not have {debian}"


def manifest(package: str) -> str:
    return (ROOT / "src" / package / "package.xml").read_text()


def test_every_profile_of_the_supervisor_has_its_files_in_the_built_workspace() -> None:
    for profile in PROFILES.values():
        for node in profile.nodes:
            check_executable(node.package, node.executable)
            assert node.params_file is not None
            assert (INSTALL / node.package / "share" / node.package / "params" / node.params_file).exists()


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_arguments_are_described_and_have_defaults(path: Path) -> None:
    declared = list(calls(ast.parse(path.read_text()), "DeclareLaunchArgument"))
    assert declared
    for argument in declared:
        words = {keyword.arg: keyword.value for keyword in argument.keywords}
        assert set(words) == {"default_value", "description"}
        assert ast.literal_eval(words["description"]).strip()


def test_the_camera_service_gives_the_launch_file_its_arguments() -> None:
    package, file = CAMERA_LAUNCH
    tree = ast.parse((ROOT / "src" / package / "launch" / file).read_text())
    declared = {
        ast.literal_eval(call.args[0]): literal(call, "default_value") for call in calls(tree, "DeclareLaunchArgument")
    }
    assert declared == {argument: VARIABLES[variable].default for argument, variable in CAMERA_ARGUMENTS}
