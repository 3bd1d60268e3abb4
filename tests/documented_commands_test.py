"""What the documents tell people to type would be understood: programs, options, profiles, services, topics."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from crane_x7_bringup.profiles import configured, find_profile
from crane_x7_vla.backends import BACKENDS, config_class
from crane_x7_vla.config.yaml import dump_config
from crane_x7_vla.protocol import ARM_TOPIC, GRIPPER_TOPIC
from crane_x7_vla.training.arguments import PROGRAM, STATISTICS_PROGRAM, parse_command, parse_statistics
from lift.nodes import topics
from tests.documents import DOCUMENTS, GAP, NODES, ROOT, blocks, check_code, launch_arguments, name, prose

# Not of this repository, so that nothing here can say whether they are right.
FOREIGN_PROGRAMS = {
    "apt-get",
    "bash",
    "cd",
    "colcon",
    "cp",
    "df",
    "export",
    "git",
    "hf",
    "pip",
    "printf",
    "source",
    "sudo",
    "tensorboard",
    "wandb",
}
FOREIGN_PACKAGES = {"crane_x7_examples", "realsense2_camera"}
FOREIGN_MODULES = {"colcon", "pip", "venv"}


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """One command of a bash block, without variables that are set before it. where: document and line."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


def split(text: str, where: str) -> Iterator[Command]:
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if token.strip("&|;"):
                words.append(token)
                continue
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield Command(where, tuple(words))
            words = []


COMMANDS = [command for path in DOCUMENTS for where, text in blocks(path, "bash") for command in split(text, where)]


# -- commands ---------------------------------------------------------------------------------------------------------


def test_there_are_documents_and_commands() -> None:
    assert {"README.md", "docs/training.md", "docs/troubleshooting.md"} <= {name(path) for path in DOCUMENTS}
    assert len(COMMANDS) > 30


def test_the_japanese_readme_has_the_same_commands() -> None:
    english, japanese = (
        [block for language in ("bash", "python") for _, block in blocks(ROOT / file, language)]
        for file in ("README.md", "README.ja.md")
    )
    assert english == japanese


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_documented_command_would_be_understood(command: Command, workplace: Path) -> None:
    check_command(command.words)


def check_command(typed: Sequence[str]) -> None:
    program, *words = typed
    if program == "torchrun":
        words = words[words.index("-m") :]
        program = "python"
    if program == "make":
        check_make(words)
    elif program == "ros2":
        check_ros2(words)
    elif program in ("python", "python3"):
        check_python(words)
    elif program == "docker":
        check_docker(words)
    else:
        assert program in FOREIGN_PROGRAMS, f"{shlex.join(typed)}: what is {program}?"


@functools.cache
def compose_services() -> dict[str, list[str]]:
    """{service: its profiles} of docker-compose.yml."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    return {service: settings["profiles"] for service, settings in services.items()}


def check_docker(words: list[str]) -> None:
    """``docker compose [--profile P …] VERB [FLAG …] [SERVICE [COMMAND …]]``; the command is one of ours again."""
    assert words.pop(0) == "compose"
    profiles: list[str] = []
    while words[0] == "--profile":
        profiles.append(words[1])
        words = words[2:]
    known = {profile for each in compose_services().values() for profile in each}
    assert set(profiles) <= known, f"no profile {set(profiles) - known}"
    verb, *rest = words
    assert verb in {"build", "down", "exec", "logs", "ps", "run", "stop", "up"}
    rest = rest[next((i for i, word in enumerate(rest) if not word.startswith("-")), len(rest)) :]
    if not rest:
        return
    service, *typed = rest
    assert service in compose_services(), f"no service {service}"
    assert not profiles or set(profiles) & set(compose_services()[service]), f"{service} is not in {profiles}"
    if typed:
        check_command(typed[1:] if typed[0] == "in_workspace" else typed)


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        variable, assigned, _ = word.partition("=")
        if assigned:
            assert f"$({variable})" in makefile or f"{variable} ?=" in makefile, f"make knows no variable {variable}"
        else:
            assert re.search(rf"^{re.escape(word)}:", makefile, flags=re.MULTILINE), f"no target {word}"


def check_python(words: list[str]) -> None:
    if words[0] == "-c":
        check_code(words[1])
        return
    assert words[0] == "-m", f"python {words[0]}"
    module, *arguments = words[1:]
    if module in FOREIGN_MODULES:
        return
    assert importlib.util.find_spec(module) is not None, f"no module {module}"
    if module == PROGRAM.split()[-1] and arguments[-1:] == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            parse_command(arguments, environ={})
    elif module == PROGRAM.split()[-1]:
        provide(arguments)
        parse_command(arguments, environ={})
    elif module == STATISTICS_PROGRAM.split()[-1]:
        provide(arguments)
        parse_statistics(arguments, environ={})
    else:
        check_options(module, arguments)
    if module == "crane_x7_bringup.up":
        profile, *words = [word for word in arguments if not word.startswith("--")]
        check_assignments(profile, words)
    if module == "crane_x7_bringup.call":
        check_call(*arguments)


def check_call(name: str, *words: str) -> None:
    """A service with its answer, or a node with parameters that may be set while it runs."""
    if name in NODES:
        assert words
        for word in words:
            parameter, assigned, _ = word.partition(":=")
            assert assigned, word
            assert parameter in parameters(name), f"{name} has no parameter {parameter}"
    else:
        assert (SERVICES[f"/{name}"] == "SetBool") == (len(words) == 1), f"{name} {words}"


def provide(arguments: list[str]) -> None:
    """The files that a training command reads."""
    given = dict(zip(arguments, [*arguments[1:], ""], strict=True))
    default = "minivla" if "train-vq" in arguments else "openvla-oft"
    backend = next((name for name in BACKENDS if name in arguments), default)
    text = dump_config(config_class(backend)())
    files = [Path(given["--config"])] if "--config" in given else []
    checkpoint = given.get("--checkpoint", given.get("--resume-from-checkpoint"))
    if checkpoint == "latest":
        output = Path(given.get("--output-dir", "outputs"))
        checkpoint = str(output / given.get("--experiment-name", "crane_x7_vla") / "checkpoint-10")
    if checkpoint is not None:
        files.append(Path(checkpoint) / "config.yaml")
    for file in files:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


def check_options(module: str, arguments: list[str]) -> None:
    text = own = help_of(module)
    commands = re.search(r"\{([\w,-]+)\}", text)
    if commands is not None and arguments and arguments[0] in commands[1].split(","):
        own = help_of(module, arguments[0])
        text += own
    for word in arguments:
        if word.startswith("--"):
            flag = word.partition("=")[0]
            assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text), f"{module} has no {flag}"
    given = {word.partition("=")[0] for word in arguments}
    if "--help" not in given:
        for choice in required_flags(own):
            assert choice & given, f"{module} needs {' or '.join(sorted(choice))}"


def required_flags(text: str) -> list[set[str]]:
    """From a help text: the flags that stand in its usage without brackets; of each set one must be given."""
    usage = text.partition("\n\n")[0]
    while (rest := re.sub(r"\[[^][]*\]", "", usage)) != usage:
        usage = rest
    groups = re.findall(r"\(([^()]*)\)", usage)
    alone = re.sub(r"\([^()]*\)", "", usage)
    return [set(re.findall(r"--[\w-]+", group)) for group in groups if "--" in group] + [
        {flag} for flag in re.findall(r"--[\w-]+", alone)
    ]


def test_a_flag_that_a_command_needs_is_missed() -> None:
    for module, arguments in (("crane_x7_vla.scripts.merge_lora", ["--adapter_path", "a"]), ("lift.evaluate", [])):
        with pytest.raises(AssertionError, match="needs --"):
            check_options(module, arguments)


@functools.cache
def help_of(module: str, *subcommand: str) -> str:
    command = [sys.executable, "-m", module, *subcommand, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_assignments(profile: str, words: list[str]) -> None:
    """NAME:=VALUE of a profile, and NODE.PARAMETER:=VALUE."""
    configured(find_profile(profile), words)
    for word in words:
        node, dot, parameter = word.partition(":=")[0].partition(".")
        if dot:
            assert parameter in parameters(node), f"{node} has no parameter {parameter}"


def check_ros2(words: list[str]) -> None:
    verb, *rest = words
    if verb == "launch":
        package, file, *arguments = rest
        known = {} if package in FOREIGN_PACKAGES else launch_arguments(package, file)
        for argument in arguments:
            assert package in FOREIGN_PACKAGES or argument.partition(":=")[0] in known, f"{file}: no {argument}"
    elif verb == "run":
        package, executable, *arguments = rest
        assert f'"{executable} = ' in (ROOT / "src" / package / "setup.py").read_text(), f"no executable {executable}"
        for word in arguments:
            assert ":=" not in word or word.partition(":=")[0] in parameters(executable.removesuffix("_node"))
    elif verb == "service":
        _, service, kind, *_ = rest
        assert kind == f"std_srvs/srv/{SERVICES[service]}", f"{service} is a {SERVICES[service]}"
    elif verb == "param":
        _, node, item, *_ = rest
        assert item in parameters(node.removeprefix("/")), f"{node} has no parameter {item}"
    elif verb == "topic":
        named = {word for word in rest if word.startswith("/")}
        assert named <= TOPICS, f"no topic {named - TOPICS}"
    else:
        assert words == ["control", "list_controllers"]


def parameters(node: str) -> set[str]:
    return {field.name for field in dataclasses.fields(NODES[node].Settings)} | {"use_sim_time"}


def of_nodes(pattern: str) -> dict[str, str]:
    """{'/node/name': what the pattern's first group finds} for the private names that its second group finds."""
    found: dict[str, str] = {}
    for node, module in NODES.items():
        source = Path(module.__file__ or "").read_text(encoding="utf-8")
        found |= {f"/{node}/{match[2]}": match[1] for match in re.finditer(pattern, source)}
    return found


SERVICES = {**of_nodes(r'create_service\((\w+), "~/(\w+)"'), f"/{topics.RESET}": "Trigger"}
TOPICS = {
    *of_nodes(r'create_(publisher|subscription)\(String, "~/(\w+)"'),
    *(f"/{topic}" for topic in (topics.EPISODE_END, topics.OBJECT_POSE, topics.JOINT_STATES, ARM_TOPIC, GRIPPER_TOPIC)),
    *(f"/{topics.camera_topic(camera)}" for camera in ("primary", "wrist")),
}


# -- commands and flags in the text ------------------------------------------------------------------------------------

INLINE = [(name(path), span) for path in DOCUMENTS for span in re.findall(r"`([^`\n]+)`", prose(path))]
FOREIGN_FLAGS = {"--nproc_per_node", "--local-dir", "--ros-args", "--no-install-recommends"}
HELPS = (
    *((PROGRAM.split()[-1], "train", backend) for backend in BACKENDS),
    (PROGRAM.split()[-1], "evaluate"),
    (STATISTICS_PROGRAM.split()[-1],),
    ("crane_x7_vla.scripts.merge_lora",),
    ("crane_x7_vla.scripts.check_policy",),
    ("crane_x7_log.episodes", "show"),
    ("crane_x7_vla.benchmarks.inference",),
    ("crane_x7_vla.benchmarks.training_memory",),
    ("crane_x7_bringup.up",),
    ("crane_x7_bringup.demo",),
    ("lift.evaluate",),
)


@functools.cache
def every_flag() -> set[str]:
    return {flag for words in HELPS for flag in re.findall(r"--[\w-]+", help_of(*words))} | FOREIGN_FLAGS


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_flags_in_the_text_exist(path: Path) -> None:
    for where, span in INLINE:
        if where == name(path) and not re.search(r"\b(ros2|docker) ", span):
            for flag in re.findall(r"(?<!\S)--[\w.-]*\w", span):
                spelt = "--" + flag.rpartition(".")[2].removeprefix("--").replace("_", "-")
                assert {flag, spelt} & every_flag(), f"{where}: no command has {flag}"


@pytest.mark.parametrize(
    "span", sorted({span for _, span in INLINE if re.match(r"(make|python|ros2|docker compose) ", span)})
)
def test_a_command_in_the_text_exists(span: str) -> None:
    match shlex.split(span):
        case ["make", *words]:
            check_make(words)
        case ["docker", *words] if GAP not in span:
            check_docker(words)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None, f"no module {module}"
        case ["ros2", "launch" | "run" | "param" | "service" | "topic", _, _, *_] as words:
            check_ros2(words[1:])
