from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from crane_x7_bringup.child import entry_point
from crane_x7_bringup.profiles import PROFILES, Profile, configured, find_profile
from crane_x7_bringup.supervisor import NodeSpec
from crane_x7_vla.errors import ConfigError

SOURCE = Path(__file__).resolve().parents[2]


def parameters(profile: str, *words: str) -> dict[str, dict[str, object]]:
    return {node.name: dict(node.parameters) for node in configured(find_profile(profile), words)}


def test_defaults_and_arguments_reach_every_node_they_are_for() -> None:
    assert parameters("sim")["sim"]["lockstep"] is False
    got = parameters("log-sim", "lockstep:=true", "control_hz:=20", "instruction:=1", "seed:=5", "use_sim_time:=true")
    assert [got[node]["lockstep"] for node in ("sim", "expert", "recorder")] == [True, True, True]
    assert [got[node]["control_hz"] for node in ("sim", "expert", "recorder")] == [20.0, 20.0, 20.0]
    assert got["recorder"]["instruction"] == "1"
    assert got["recorder"]["camera_names"] == ["primary", "wrist"]
    assert got["sim"]["seed"] == 5
    assert got["sim"]["publish_clock"] is True
    assert got["recorder"]["use_sim_time"] is True
    assert "use_sim_time" not in got["sim"]


def test_any_parameter_of_a_node_can_be_set() -> None:
    got = parameters("vla-sim", "sim.image_width:=64", "sim.cameras:=[primary]", "vla_inference.max_age:=1.5")
    assert got["sim"]["image_width"] == 64
    assert got["sim"]["cameras"] == ["primary"]
    assert got["vla_inference"]["max_age"] == 1.5
    # Which cameras there are is known when the model has been read.
    got = parameters("vla-sim", "vla_inference.cameras.wrist.topic:=/hand/image")
    assert got["vla_inference"]["cameras.wrist.topic"] == "/hand/image"


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("lokstep:=true", "unknown argument 'lokstep' of profile sim; did you mean 'lockstep'"),
        ("robot.port:=1", "unknown argument 'robot.port'"),
        ("lockstep", "'lockstep' is no argument; expected name:=value, such as lockstep:=false"),
        ("lockstep:=1", "argument 'lockstep' must be true or false, got '1'"),
        ("control_hz:=fast", "argument 'control_hz' must be a number, got 'fast'"),
        ("seed:=1.5", "argument 'seed' must be an integer"),
        (
            "sim.image_widht:=64",
            "node sim has no parameter 'image_widht'; did you mean 'image_width'\\? It has: simulator",
        ),
        ("sim.cameras:=[primary", r"the value of 'sim\.cameras' cannot be read: '\[primary' \(while parsing"),
        ("seed:=[", r"the value of 'seed' cannot be read: '\['"),
    ],
)
def test_wrong_arguments_are_named(word: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as error:
        parameters("sim", word)
    assert "\n" not in str(error.value)


def test_an_unknown_profile_lists_the_known() -> None:
    with pytest.raises(
        ConfigError, match="unknown profile 'real'; known profiles: sim, log-sim, expert-sim, log, vla, vla-sim"
    ):
        find_profile("real")


# -- launch files say the same ----------------------------------------------------------------------------------------


def launch_file(package: str, name: str) -> ast.Module:
    return ast.parse((SOURCE / package / "launch" / f"{name}.launch.py").read_text())


def calls(tree: ast.Module, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def declared(tree: ast.Module) -> dict[str, tuple[object, str]]:
    """{argument: (default, description)} of a launch file; defaults that are not literal are None."""
    arguments = {}
    for call in calls(tree, "DeclareLaunchArgument"):
        words = {keyword.arg: keyword.value for keyword in call.keywords}
        default = words["default_value"]
        description = ast.literal_eval(words["description"])
        value = ast.literal_eval(default) if isinstance(default, ast.Constant) else None
        arguments[ast.literal_eval(call.args[0])] = (value, description)
    return arguments


def set_parameters(call: ast.Call) -> dict[str, tuple[str, str] | object]:
    """{parameter: (argument, type)} that a launch_ros Node lays over its parameter file."""
    (entry,) = [k.value for k in call.keywords if k.arg == "parameters"]
    assert isinstance(entry, ast.List)
    result: dict[str, tuple[str, str] | object] = {}
    for item in entry.elts:
        if isinstance(item, ast.Dict):
            for key, value in zip(item.keys, item.values, strict=True):
                assert key is not None
                assert isinstance(value, ast.Call)
                result[ast.literal_eval(key)] = (ast.literal_eval(value.args[0]), ast.unparse(value.args[1]))
    return result


def literal(call: ast.Call, name: str) -> str:
    (value,) = [k.value for k in call.keywords if k.arg == name]
    return ast.literal_eval(value)


PACKAGE_FILES = {
    "sim": ("crane_x7_lift", "sim"),
    "recorder": ("crane_x7_log", "recorder"),
    "vla_inference": ("crane_x7_vla", "vla_inference"),
}
TYPES = {bool: "bool", int: "int", float: "float", str: "str"}
# The others are started by the launch file of their node's package.
COMPOSED = [profile for profile in PROFILES.values() if profile.launch[0] == "crane_x7_bringup"]


@pytest.mark.parametrize("profile", COMPOSED, ids=lambda profile: profile.name)
def test_the_launch_file_of_a_profile_has_its_arguments_and_defaults(profile: Profile) -> None:
    tree = launch_file(*profile.launch)
    expected = {
        argument.name: (str(argument.default).lower() if isinstance(argument.default, bool) else str(argument.default))
        for argument in profile.arguments
    }
    found = declared(tree)
    assert {name: default for name, (default, _) in found.items()} == expected
    assert {name: text for name, (_, text) in found.items()} == {a.name: a.description for a in profile.arguments}


@pytest.mark.parametrize("profile", COMPOSED, ids=lambda profile: profile.name)
def test_each_argument_sets_the_same_parameters_through_the_launch_files(profile: Profile) -> None:
    """Follow each argument from the profile's launch file through the included one to the node's parameter."""
    tree = launch_file(*profile.launch)
    reached: set[tuple[str, str, str]] = set()
    for call in calls(tree, "Node"):
        for parameter, source in set_parameters(call).items():
            assert isinstance(source, tuple)
            reached.add((source[0], literal(call, "name"), parameter))
    for include in calls(tree, "IncludeLaunchDescription"):
        path = ast.unparse(include.args[0])
        (node,) = [
            n for n, (package, file) in PACKAGE_FILES.items() if f"'{package}'" in path and f"{file}.launch" in path
        ]
        inner = launch_file(*PACKAGE_FILES[node])
        (passed,) = [k.value for k in include.keywords if k.arg == "launch_arguments"]
        (mapping,) = [n for n in ast.walk(passed) if isinstance(n, ast.Dict)]
        (inner_node,) = calls(inner, "Node")
        assert literal(inner_node, "name") == node
        inner_parameters = {
            argument: parameter
            for parameter, source in set_parameters(inner_node).items()
            if isinstance(source, tuple)
            for argument in source[:1]
        }
        for key, value in zip(mapping.keys, mapping.values, strict=True):
            assert key is not None
            name = ast.literal_eval(key)
            assert name in declared(inner), f"{path} takes no {name}"
            if isinstance(value, ast.Call):
                reached.add((ast.literal_eval(value.args[0]), node, inner_parameters[name]))
            else:
                (own,) = [n for n in profile.nodes if n.name == node]
                assert own.parameters[inner_parameters[name]] == yaml.safe_load(ast.literal_eval(value))
    assert reached == {(a.name, node, parameter) for a in profile.arguments for node, parameter in a.targets}


@pytest.mark.parametrize("profile", COMPOSED, ids=lambda profile: profile.name)
def test_included_launch_files_do_not_share_their_arguments(profile: Profile) -> None:
    """launch gives the params_file of the first included file to the second too, unless each is in a group."""
    tree = launch_file(*profile.launch)
    includes = list(calls(tree, "IncludeLaunchDescription"))
    assert includes
    assert len(includes) == 1 or len(list(calls(tree, "GroupAction"))) == len(includes)


@pytest.mark.parametrize("profile", [p for p in COMPOSED if len(p.nodes) > 1], ids=lambda p: p.name)
def test_a_launch_with_several_nodes_ends_when_one_of_them_does(profile: Profile) -> None:
    tree = launch_file(*profile.launch)
    (description,) = calls(tree, "LaunchDescription")
    assert "together" in ast.unparse(description)
    assert "together = RegisterEventHandler(OnProcessExit(on_exit=[Shutdown(" in ast.unparse(tree)


@pytest.mark.parametrize("profile", [p for p in PROFILES.values() if p not in COMPOSED], ids=lambda p: p.name)
def test_the_launch_file_of_a_package_takes_the_arguments_of_its_profile(profile: Profile) -> None:
    (node,) = profile.nodes
    assert profile.launch == PACKAGE_FILES[node.name]
    tree = launch_file(*profile.launch)
    (call,) = calls(tree, "Node")
    parameters = set_parameters(call)
    for argument in profile.arguments:
        assert argument.name in declared(tree)
        for target, parameter in argument.targets:
            assert target == node.name
            assert parameters[parameter] == (argument.name, TYPES[type(argument.default)])


@pytest.mark.parametrize("node", ["sim", "recorder", "vla_inference"])
def test_launch_files_of_the_packages_start_what_the_profiles_start(node: str) -> None:
    package, file = PACKAGE_FILES[node]
    tree = launch_file(package, file)
    (call,) = calls(tree, "Node")
    (known,) = {n.name: n for p in PROFILES.values() for n in p.nodes if n.name == node}.values()
    assert literal(call, "package") == known.package == package
    assert literal(call, "executable") == known.executable
    assert f"'{known.params_file}'" in ast.unparse(tree)
    types = {argument.name: TYPES[type(argument.default)] for p in PROFILES.values() for argument in p.arguments}
    for source in set_parameters(call).values():
        assert isinstance(source, tuple)
        argument, kind = source
        assert argument in declared(tree)
        if argument in types:
            assert kind == types[argument]
    for argument, (_, description) in declared(tree).items():
        assert description, argument


def all_nodes() -> list[NodeSpec]:
    return list({node.name: node for profile in PROFILES.values() for node in profile.nodes}.values())


@pytest.mark.parametrize("node", all_nodes(), ids=lambda node: node.name)
def test_executables_and_parameter_files_exist_and_are_installed(node: NodeSpec) -> None:
    point = entry_point(node.package, node.executable)
    assert point.value.startswith(f"{node.module}.nodes.")
    assert node.arguments()
    folder = SOURCE / node.package
    text = (folder / "setup.py").read_text()
    for shipped in ('glob("launch/*.launch.py")', f'glob("{node.module}/params/*.yaml")', "params/*"):
        assert shipped in text, f"{folder}/setup.py does not install {shipped}"


def test_no_parameter_is_both_an_argument_and_in_the_parameter_file() -> None:
    """Each value is written in one place; an argument would always win over the file."""
    for profile in PROFILES.values():
        for node in profile.nodes:
            assert node.params_file is not None
            path = SOURCE / node.package / node.module / "params" / node.params_file
            in_file = set(yaml.safe_load(path.read_text())["/**"]["ros__parameters"])
            arguments = {p for a in profile.arguments for name, p in a.targets if name == node.name}
            assert not in_file & arguments, node.name
