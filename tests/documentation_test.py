"""The documents say what is: commands parse, options and files exist, tables and quoted messages are the code's."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from crane_x7_bringup.demo.goals import GOALS
from crane_x7_bringup.profiles import PROFILES, configured, find_profile
from crane_x7_log.nodes import recorder_node
from crane_x7_vla.backends import BACKENDS, config_class
from crane_x7_vla.config.yaml import dump_config
from crane_x7_vla.data.episode import CameraMetadata, EpisodeMetadata, EpisodeWriter, Step, encode_jpeg
from crane_x7_vla.nodes import inference_node
from crane_x7_vla.protocol import ARM_TOPIC, GRIPPER_TOPIC
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.training.arguments import PROGRAM, STATISTICS_PROGRAM, parse_command, parse_statistics
from lift.nodes import expert_node, sim_node, topics

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ("README.md", "README.ja.md", "docs/*.md", "src/*/README.md")
DOCUMENTS = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
GAP = "…"  # what a quoted message leaves out

NODES = {"sim": sim_node, "expert": expert_node, "recorder": recorder_node, "vla_inference": inference_node}
INTERFACES = ROOT / "docs" / "ros_interface.md"
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


# -- taking documents apart -------------------------------------------------------------------------------------------


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> Iterator[tuple[str, str]]:
    """(where, text) of the fenced blocks of a language."""
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^[ ]*```(\w*)\n(.*?)^[ ]*```$", text, flags=re.DOTALL | re.MULTILINE):
        if match[1] == language:
            yield f"{name(path)}:{text.count(chr(10), 0, match.start()) + 2}", match[2]


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^[ ]*```.*?^[ ]*```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


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


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the documents' paths exist: a link to the sources, and whatever ``provide`` makes."""
    (tmp_path / "src").symlink_to(ROOT / "src")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


def launch_arguments(package: str, file: str) -> dict[str, tuple[str, str]]:
    """{argument: (default, description)} that a launch file declares."""
    tree = ast.parse((ROOT / "src" / package / "launch" / file).read_text(encoding="utf-8"))
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "DeclareLaunchArgument":
            words = {word.arg: word.value for word in node.keywords}
            first, default, description = node.args[0], words["default_value"], words["description"]
            assert isinstance(first, ast.Constant)
            assert isinstance(description, ast.Constant)
            shown = str(default.value) if isinstance(default, ast.Constant) else "that of the package"
            found[str(first.value)] = (shown, str(description.value))
    return found


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


# -- tables made from the code ----------------------------------------------------------------------------------------

TABLE = re.compile(r"^(<!-- (parameters|arguments) of ([\w. -]+?) -->\n)((?:\|.*\n)*)", flags=re.MULTILINE)


def table(kind: str, subject: str) -> str:
    """The Markdown table of a node's parameters, or of the arguments of a launch file or a profile."""
    rows: list[tuple[str, object, str]]
    if kind == "parameters":
        fields = dataclasses.fields(NODES[subject].Settings)
        rows = [(field.name, field.default, field.metadata["description"]) for field in fields]
    elif subject in PROFILES:
        rows = [(item.name, item.default, item.description) for item in PROFILES[subject].arguments]
    else:
        rows = [(item, *rest) for item, rest in launch_arguments(*subject.split()).items()]
    lines = [f"| {kind.removesuffix('s')} | default | meaning |", "|---|---|---|"]
    lines += [f"| `{item}` | {shown(default)} | {text.replace('|', chr(92) + '|')} |" for item, default, text in rows]
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`" if value else "empty"
    return f"`{value}`" if value not in ("", "['']") else "empty"


def with_tables(text: str) -> str:
    """A document with its tables as the code has them."""
    return TABLE.sub(lambda match: match[1] + table(match[2], match[3]), text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_tables_are_those_of_the_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == with_tables(text), "type: python tests/documentation_test.py, which writes the tables anew"


def test_every_node_has_its_table() -> None:
    assert {match[3] for match in TABLE.finditer(INTERFACES.read_text(encoding="utf-8"))} >= set(NODES)


# -- goals ------------------------------------------------------------------------------------------------------------


def test_the_demos_goals_are_those_of_the_code() -> None:
    text = " ".join((ROOT / "docs" / "demo.md").read_text(encoding="utf-8").split())
    found = dict(re.findall(r"- \*\*([^*]+)\*\*:(?:(?! - \*\*).)*? Goal: ([^.]+)\.", text))
    assert found == {goal.experiment: str(goal).replace("%", " %") for goal in GOALS}


# -- messages ---------------------------------------------------------------------------------------------------------

QUOTED = [
    (f"{name(path)}: {match[1]}", match[1])
    for path in [ROOT / "docs" / "troubleshooting.md"]
    if path in DOCUMENTS
    for match in re.finditer(r"^\| `([^`]+)` \|", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
]


@functools.cache
def messages() -> list[str]:
    """Every text in the code, with GAP where a value is filled in."""
    found: list[str] = []
    for path in ROOT.glob("src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                found.append("".join(pieces(node)))
    found += re.findall(r'fail "([^"]*)"', (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8"))
    return found


def pieces(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub(r"%[sdg]|%\.\dg", GAP, node.value)
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from pieces(part)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from (*pieces(node.left), *pieces(node.right))
    elif isinstance(node, ast.IfExp):
        yield from pieces(node.body)
    else:
        yield GAP


@pytest.mark.parametrize("message", [message for _, message in QUOTED], ids=[where for where, _ in QUOTED])
def test_a_quoted_message_is_one_of_the_code(message: str) -> None:
    parts = [re.escape(part.strip()) for part in message.split(GAP)]
    assert any(re.search(".*".join(parts), text, flags=re.DOTALL) for text in messages())


# -- Python, links and paths ------------------------------------------------------------------------------------------


def check_code(text: str) -> None:
    """It compiles, and what it imports is there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for item in node.names:
                assert hasattr(module, item.name), f"{node.module} has no {item.name}"
        elif isinstance(node, ast.Import):
            for item in node.names:
                assert importlib.util.find_spec(item.name) is not None


PYTHON = [(where, text) for path in DOCUMENTS for where, text in blocks(path, "python")]


@pytest.mark.parametrize(("where", "text"), PYTHON, ids=[where for where, _ in PYTHON])
def test_python_examples(where: str, text: str, workplace: Path) -> None:
    if where.startswith("docs/data_format.md"):
        record_episode(workplace / "data" / "tfrecord_logs")
        exec(compile(text, where, "exec"), {})
    else:
        check_code(text)


def record_episode(root: Path) -> None:
    metadata = EpisodeMetadata(
        robot=CRANE_X7.name,
        hz=10.0,
        instruction="pick up the red cube",
        cameras={"primary": CameraMetadata(width=16, height=16)},
        joint_names=CRANE_X7.joint_names,
    )
    writer = EpisodeWriter(root, metadata)
    state = np.zeros(8, np.float32)
    image = encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    writer.write(
        Step(images={"primary": image}, state=state, action=state, instruction=metadata.instruction, stamp=1.0)
    )
    writer.finish()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        file, _, anchor = target.partition("#")
        if "://" in file or file.startswith("mailto:"):
            continue
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{name(path)}: no {target}"
        if anchor:
            assert anchor in anchors(linked), f"{name(path)}: no heading for {target}"


def anchors(path: Path) -> set[str]:
    """Anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#{1,6} (.*)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_paths_of_the_repository_exist(path: Path) -> None:
    folders = "src|docs|tests|scripts|requirements"
    for named in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*\w", path.read_text(encoding="utf-8")):
        assert (ROOT / named).exists() or (path.parent / named).exists(), f"{name(path)}: no {named}"


def main() -> None:
    """Write the tables of every document anew."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        if text != with_tables(text):
            path.write_text(with_tables(text), encoding="utf-8")
            sys.stdout.write(f"wrote {name(path)}\n")


if __name__ == "__main__":
    main()
