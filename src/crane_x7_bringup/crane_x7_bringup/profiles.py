"""Which nodes belong together, for machines without ``ros2 launch``: the same nodes, parameter files and arguments as
their launch files (a test compares them)."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from crane_x7_bringup.child import entry_point
from crane_x7_bringup.supervisor import NodeSpec
from crane_x7_vla.errors import ConfigError
from lift.tasks.pick_up import PICK_UP

_ASSIGN = ":="


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """A setting of a profile. targets: the parameters it sets, as (node, parameter). Its type is the default's."""

    name: str
    default: bool | int | float | str
    description: str
    targets: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Nodes and arguments of ``python -m crane_x7_bringup.up <name>``.

    launch: package and name of the ``.launch.py`` that starts the same nodes; that of a single node's own package may
    take more arguments, and has its own defaults.
    """

    name: str
    launch: tuple[str, str]
    description: str
    nodes: tuple[NodeSpec, ...]
    arguments: tuple[Argument, ...]


SIM = NodeSpec(name="sim", package="crane_x7_lift", module="lift", executable="sim_node", params_file="sim.yaml")
EXPERT = NodeSpec(
    name="expert", package="crane_x7_lift", module="lift", executable="expert_node", params_file="sim.yaml"
)
RECORDER = NodeSpec(
    name="recorder",
    package="crane_x7_log",
    module="crane_x7_log",
    executable="recorder_node",
    params_file="recorder.yaml",
    parameters={"camera_names": ["primary", "wrist"]},
    # With num_episodes it ends by itself.
    may_finish=True,
)
INFERENCE = NodeSpec(
    name="vla_inference",
    package="crane_x7_vla",
    module="crane_x7_vla",
    executable="vla_inference_node",
    params_file="inference.yaml",
)

# Parameters whose names a model or a recording decides.
_GROUPS = {INFERENCE.name: "cameras."}

INSTRUCTION = PICK_UP.instruction


def _sim_arguments(*others: str) -> tuple[Argument, ...]:
    """What sim.launch.py takes; ``others`` run in step with it."""
    nodes = ("sim", *others)
    return (
        Argument(
            name="lockstep",
            default=False,
            description="advance only when the commands of the present instant have come, instead of by the clock",
            targets=tuple((node, "lockstep") for node in nodes),
        ),
        Argument(
            name="control_hz",
            default=10.0,
            description="control periods per second; observations come at this rate",
            targets=tuple((node, "control_hz") for node in nodes),
        ),
        Argument(
            name="use_sim_time",
            default=False,
            description="simulated time on /clock and in every stamp, instead of the system's",
            targets=(("sim", "publish_clock"), *((node, "use_sim_time") for node in others)),
        ),
        Argument(name="seed", default=0, description="seed of the first episode", targets=(("sim", "seed"),)),
        Argument(
            name="auto_reset",
            default=False,
            description="start the next episode a second after one has ended",
            targets=(("sim", "auto_reset"),),
        ),
    )


_INSTRUCTION_RECORDED = Argument(
    name="instruction",
    default=INSTRUCTION,
    description="the task in words, recorded with each episode",
    targets=(("recorder", "instruction"),),
)
_OUTPUT_DIR = Argument(
    name="output_dir",
    default="data/tfrecord_logs",
    description="folder of the episodes",
    targets=(("recorder", "output_dir"),),
)
_INFERENCE_ARGUMENTS = (
    Argument(
        name="model_path",
        default="",
        description="directory of a merged model, or a checkpoint-N",
        targets=(("vla_inference", "model_path"),),
    ),
    Argument(
        name="instruction",
        default=INSTRUCTION,
        description="what the arm shall do",
        targets=(("vla_inference", "instruction"),),
    ),
    Argument(
        name="device",
        default="auto",
        description="cpu, cuda, cuda:1, …; auto takes a GPU where there is one",
        targets=(("vla_inference", "device"),),
    ),
    Argument(
        name="autostart",
        default=True,
        description="drive as soon as everything is seen; otherwise wait for ~/start",
        targets=(("vla_inference", "autostart"),),
    ),
)


def _node_arguments(node: str) -> tuple[Argument, ...]:
    """Rate and time of a node beside an arm, real or simulated, that others started."""
    return (
        Argument(
            name="lockstep",
            default=False,
            description="go along with a simulator in lockstep",
            targets=((node, "lockstep"),),
        ),
        Argument(
            name="control_hz",
            default=10.0,
            description="steps per second",
            targets=((node, "control_hz"),),
        ),
        Argument(
            name="use_sim_time",
            default=False,
            description="take the time from /clock",
            targets=((node, "use_sim_time"),),
        ),
    )


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="sim",
            launch=("crane_x7_bringup", "sim"),
            description="the simulated arm alone, on the real arm's topics",
            nodes=(SIM,),
            arguments=_sim_arguments(),
        ),
        Profile(
            name="log-sim",
            launch=("crane_x7_bringup", "log_sim"),
            description="the simulated arm, driven by the scripted expert, and the recorder",
            nodes=(SIM, EXPERT, RECORDER),
            arguments=(
                *_sim_arguments("expert", "recorder"),
                _INSTRUCTION_RECORDED,
                _OUTPUT_DIR,
            ),
        ),
        Profile(
            name="expert-sim",
            launch=("crane_x7_bringup", "expert_sim"),
            description="the simulated arm, driven by the scripted expert",
            nodes=(SIM, EXPERT),
            arguments=_sim_arguments("expert"),
        ),
        Profile(
            name="log",
            launch=("crane_x7_log", "recorder"),
            description="the recorder alone, beside an arm that others started",
            nodes=(RECORDER,),
            arguments=(*_node_arguments("recorder"), _INSTRUCTION_RECORDED, _OUTPUT_DIR),
        ),
        Profile(
            name="vla",
            launch=("crane_x7_vla", "vla_inference"),
            description="the inference node alone, beside an arm that others started",
            nodes=(INFERENCE,),
            arguments=(*_node_arguments("vla_inference"), *_INFERENCE_ARGUMENTS),
        ),
        Profile(
            name="vla-sim",
            launch=("crane_x7_bringup", "vla_sim"),
            description="the simulated arm, driven by a model",
            nodes=(SIM, INFERENCE),
            arguments=(
                *_sim_arguments("vla_inference"),
                *_INFERENCE_ARGUMENTS,
            ),
        ),
    )
}


def find_profile(name: str) -> Profile:
    """The profile of that name; raises ConfigError that lists them."""
    if name not in PROFILES:
        raise ConfigError(f"unknown profile '{name}'; known profiles: {', '.join(PROFILES)}")
    return PROFILES[name]


def configured(profile: Profile, words: Sequence[str]) -> tuple[NodeSpec, ...]:
    """The profile's nodes with the arguments ``words`` laid over its defaults.

    words: ``name:=value`` for the profile's arguments, ``node.parameter:=value`` for any other parameter.
    Raises ConfigError for a word that is neither, with a suggestion, and for a value of the wrong type.
    """
    arguments = {argument.name: argument for argument in profile.arguments}
    values: dict[tuple[str, str], Any] = {
        target: argument.default for argument in profile.arguments for target in argument.targets
    }
    nodes = {node.name: node for node in profile.nodes}
    for word in words:
        name, assign, text = word.partition(_ASSIGN)
        node, dot, parameter = name.partition(".")
        if not assign:
            raise ConfigError(f"'{word}' is no argument; expected name:=value, such as {_example(profile)}")
        if name in arguments:
            value = _value(arguments[name], text)
            values.update(dict.fromkeys(arguments[name].targets, value))
        elif dot and node in nodes:
            _check_parameter(nodes[node], parameter)
            values[node, parameter] = parsed_value(name, text)
        else:
            raise ConfigError(
                f"unknown argument '{name}' of profile {profile.name}{_nearest(name, arguments)} It takes: "
                f"{', '.join(arguments)}, and node.parameter for the parameters of {', '.join(nodes)}"
            )
    return tuple(_with(node, values) for node in profile.nodes)


def parsed_value(name: str, text: str) -> Any:
    """The value that ``text`` is in YAML; raises ConfigError naming ``name``."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the value of '{name}' cannot be read: '{text}' ({' '.join(str(error).split())}). A list is \"[a, b]\", "
            "text with brackets or colons is quoted twice, '\"…\"'"
        ) from error


def _check_parameter(node: NodeSpec, parameter: str) -> None:
    """Raises ConfigError for a parameter that the node does not declare; ROS would pass over it without a word."""
    module = importlib.import_module(entry_point(node.package, node.executable).module)
    known = [*(field.name for field in dataclasses.fields(module.Settings)), "use_sim_time"]
    if parameter in known or (node.name in _GROUPS and parameter.startswith(_GROUPS[node.name])):
        return
    raise ConfigError(
        f"node {node.name} has no parameter '{parameter}'{_nearest(parameter, known)} It has: {', '.join(known)}"
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else "."


def _with(node: NodeSpec, values: Mapping[tuple[str, str], Any]) -> NodeSpec:
    own = {parameter: value for (name, parameter), value in values.items() if name == node.name}
    return dataclasses.replace(node, parameters={**node.parameters, **own})


def _value(argument: Argument, text: str) -> bool | int | float | str:
    kind = type(argument.default)
    if kind is str:
        return text
    value = parsed_value(argument.name, text)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        expected = {bool: "true or false", int: "an integer", float: "a number"}[kind]
        raise ConfigError(f"argument '{argument.name}' must be {expected}, got '{text}'")
    return value


def _example(profile: Profile) -> str:
    first = profile.arguments[0]
    return f"{first.name}{_ASSIGN}{str(first.default).lower()}"
