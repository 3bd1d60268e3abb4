# pyright: strict, reportMissingTypeStubs=false
"""The training commands and the settings each of them ends up with. No torch.

Precedence: defaults, environment variables, the checkpoint that is resumed from, the YAML file, flags (``flags``).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from crane_x7_vla.backends import BACKENDS, backend_entry, config_class
from crane_x7_vla.backends.minivla.config import MiniVLAConfig
from crane_x7_vla.checkpoints.base_model import local_model
from crane_x7_vla.checkpoints.store import CheckpointStore, refuse_experiment
from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.config.schema import build, settings, value_at
from crane_x7_vla.config.yaml import CONFIG_NAME, backend_name, dump_config, flatten, load_config, read_yaml, suggest
from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.training.flags import add_settings, flag_table, flag_values, normalize, parse_known, switches

PROGRAM = "python -m crane_x7_vla.training.cli"
STATISTICS_PROGRAM = "python -m crane_x7_vla.scripts.compute_crane_x7_norm_stats"
# A setting that is given replaces the other one of the pair from a weaker source: --warmup-ratio a file's warmup_steps.
_EXCLUSIVE = {"training.warmup_steps": "training.warmup_ratio", "training.warmup_ratio": "training.warmup_steps"}
# What evaluation may do differently from training; everything else is the checkpoint's own.
EVALUATION_SETTINGS = (
    "data.num_workers",
    "data.cache_gb",
    "data.instruction",
    "training.batch_size",
    "training.mixed_precision",
    "training.device",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainCommand:
    """train. origins: where each setting's value comes from: 'default', a variable, a file or a flag."""

    config: VLAConfig
    origins: Mapping[str, str]
    print_config: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigCommand:
    """config. output: the file to write, or None for the standard output."""

    config: VLAConfig
    output: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateCommand:
    """evaluate. test_data: episodes to use instead of the run's held-out ones. output: JSON file for the metrics."""

    config: VLAConfig
    checkpoint: Path
    test_data: Path | None
    output: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VQCommand:
    """train-vq: a MiniVLA's settings, some of which are the VQ's."""

    config: MiniVLAConfig


@dataclass(frozen=True, slots=True)
class BackendsCommand:
    """backends: list them."""


Command = TrainCommand | VQCommand | ConfigCommand | EvaluateCommand | BackendsCommand


def parse_command(argv: Sequence[str], *, environ: Mapping[str, str]) -> Command:
    """The command a user typed. Raises ConfigError with one line; ``--help`` prints and exits as argparse does."""
    command, rest = _split_command(argv)
    if command == "backends":
        parse_known(_parser("backends"), rest, flags={})
        return BackendsCommand()
    if command == "evaluate":
        return _parse_evaluate(rest)
    return _parse_config(command, rest, environ)


def parse_statistics(argv: Sequence[str], *, environ: Mapping[str, str]) -> ConfigCommand:
    """What compute_crane_x7_norm_stats was asked: the same settings as training, and the file to write."""
    command = _parse_config("statistics", argv, environ)
    assert isinstance(command, ConfigCommand)
    return command


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Settings from one source. values: {path: value}. origins: {path: what to call the source}."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]


def merge(layers: Sequence[Layer]) -> Layer:
    """All settings of ``layers``; later ones win."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for path, value in layer.values.items():
            rival = _EXCLUSIVE.get(path)
            if value is not None and rival is not None and layer.values.get(rival) is None and rival in values:
                values[rival] = None
        values.update(layer.values)
        origins.update(layer.origins)
    return Layer(values=values, origins=origins)


def backend_list() -> str:
    """A line for each backend: name, aliases, what it is."""
    lines: list[str] = []
    for name, entry in BACKENDS.items():
        aliases = f" (also: {', '.join(entry.aliases)})" if entry.aliases else ""
        lines.append(f"{name:<14}{entry.summary}{aliases}")
    return "\n".join(lines)


def config_text(config: VLAConfig) -> str:
    """The file that ``config`` writes: YAML with each setting's description beside it."""
    table = settings(type(config))
    return dump_config(config, note=lambda path: table[path].doc)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see: {self.prog} --help")


def _program(command: str) -> str:
    return STATISTICS_PROGRAM if command == "statistics" else f"{PROGRAM} {command}".strip()


def _parser(command: str, description: str | None = None) -> _Parser:
    rest = {"": "COMMAND …", "evaluate": "--checkpoint DIR [settings]", "train-vq": "[settings]", "backends": ""}.get(
        command, "BACKEND [settings]"
    )
    return _Parser(
        prog=_program(command),
        usage=f"{_program(command)} {rest}".rstrip(),
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _split_command(argv: Sequence[str]) -> tuple[str, list[str]]:
    commands = {
        "train": "train a backend on recorded episodes",
        "train-vq": "learn the VQ that minivla's action tokens stand for, before minivla is trained",
        "config": "write a config file with every setting of a backend",
        "evaluate": "errors of a checkpoint on recorded episodes",
        "backends": "list the backends",
    }
    listing = "\n".join(f"  {name:<10} {text}" for name, text in commands.items())
    if not argv or argv[0] in ("-h", "--help"):
        if argv:
            parser = _parser("", f"commands:\n{listing}\n\nmore: {PROGRAM} COMMAND --help")
            parser.print_help()
            parser.exit(0)
        raise ConfigError(f"no command; expected one of {', '.join(commands)}; see: {PROGRAM} --help")
    if argv[0] not in commands:
        raise ConfigError(
            f"unknown command '{argv[0]}'; expected one of {', '.join(commands)}{suggest(argv[0], list(commands))}"
        )
    return argv[0], list(argv[1:])


def _parse_config(
    command: str, argv: Sequence[str], environ: Mapping[str, str]
) -> TrainCommand | VQCommand | ConfigCommand:
    named, file, resume = _find_backend(argv)
    mapping = read_yaml(file) if file is not None else {}
    for source in (file, resume):
        in_source = None if source is None else backend_name(read_yaml(source), source=str(source))
        if in_source is not None:
            named[str(source)] = in_source
    if command == "train-vq":
        named["train-vq"] = "minivla"
    if not named and not _wants_help(argv):
        example = f"{_program(command)} {'--backend ' if command == 'config' else ''}{next(iter(BACKENDS))}"
        raise ConfigError(f"no backend given; expected one of {', '.join(BACKENDS)}; type for instance: {example}")
    backend = _agree(named) if named else None
    config_type = config_class(backend) if backend is not None else VLAConfig
    table = flag_table(config_type)
    parser = _parser(command, _description(command, backend))
    parser.add_argument("backend", nargs="?", metavar="BACKEND", help=f"one of {', '.join(BACKENDS)}")
    parser.add_argument("--backend", dest="backend_flag", metavar="BACKEND", help="the same, as a flag")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings; flags win over it")
    if command in ("config", "statistics"):
        place = "standard output" if command == "config" else "dataset_statistics.json in the data root"
        parser.add_argument("--output", type=Path, metavar="FILE", help=f"file to write (default: {place})")
    elif command == "train":
        parser.add_argument(
            "--print-config",
            action="store_true",
            help="print the effective settings and where they come from, and stop",
        )
    add_settings(parser, table, config_type)
    options = parse_known(parser, normalize(argv, table), flags=table)
    flags = flag_values(options, table)
    in_file = flatten(mapping, config_type, source=str(file))
    layers = [
        _environment_layer(environ),
        Layer(values=in_file, origins=dict.fromkeys(in_file, str(file))),
        Layer(values=flags, origins={setting.path: flag for flag, setting in table.items() if setting.path in flags}),
    ]
    if command == "train":
        environment, in_yaml, typed = layers
        resumed, brought = _resume_layers(merge(layers).values, config_type)
        layers = [environment, resumed, in_yaml, brought, typed]
    merged = merge(layers)
    if command == "train-vq":
        config = build(config_type, merged.values)
        assert isinstance(config, MiniVLAConfig)
        return VQCommand(config=config)
    if command != "train":
        return ConfigCommand(config=build(config_type, merged.values), output=options.output)
    config = build(config_type, _with_whole_base_path(merged.values, config_type))
    origins = {path: merged.origins.get(path, "default") for path in settings(config_type)}
    return TrainCommand(config=config, origins=origins, print_config=options.print_config)


def _parse_evaluate(argv: list[str]) -> EvaluateCommand:
    table = {flag: setting for flag, setting in flag_table(VLAConfig).items() if setting.path in EVALUATION_SETTINGS}
    parser = _parser("evaluate", "Errors of a checkpoint on recorded episodes, by joint and by row of the chunk.")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="a checkpoint-N directory, or a merged model"
    )
    parser.add_argument(
        "--test-data", type=Path, metavar="DIR", help="episodes to use (default: those held out in the training run)"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file for the settings below; those of the model come from the checkpoint",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the metrics as JSON too")
    add_settings(parser, table, VLAConfig, defaults_of="the checkpoint's")
    options = parse_known(parser, normalize(argv, table), flags=table)
    checkpoint: Path = options.checkpoint
    refuse_experiment(checkpoint)
    if not (checkpoint / CONFIG_NAME).is_file():
        raise ConfigError(f"no {CONFIG_NAME} in {checkpoint}; expected a checkpoint-N directory, or a merged model")
    trained = load_config(checkpoint / CONFIG_NAME)
    values = {path: value_at(trained, path) for path in settings(type(trained)) if path != "backend"}
    if options.config is not None:
        mapping = read_yaml(options.config)
        in_file = backend_name(mapping, source=str(options.config))
        if in_file is not None:
            _agree({str(options.config): in_file, str(checkpoint): trained.backend})
        file = flatten(mapping, type(trained), source=str(options.config))
        values.update({path: value for path, value in file.items() if path in EVALUATION_SETTINGS})
    values.update(flag_values(options, table))
    return EvaluateCommand(
        config=build(type(trained), values),
        checkpoint=checkpoint,
        test_data=options.test_data,
        output=options.output,
    )


def _find_backend(argv: Sequence[str]) -> tuple[dict[str, str], Path | None, Path | None]:
    """What must be known before the flags are, which depend on the backend.

    Returns ({where it is written: backend}, the config file, the config of the checkpoint to resume from).
    """
    valueless = {"--print-config", "--help", "-h"}.union(*(switches(config_class(name)) for name in BACKENDS))
    named: dict[str, str] = {}
    paths: dict[str, Path] = {}
    position = 0
    while position < len(argv):
        flag, equals, value = argv[position].partition("=")
        position += 1
        if not flag.startswith("-"):
            named.setdefault("the first argument", argv[position - 1])
            continue
        flag = flag.replace("_", "-").replace("--training.", "--")
        if flag in valueless:
            continue
        if not equals:
            value = argv[position] if position < len(argv) else ""
            position += 1
        if flag == "--backend":
            named["--backend"] = value
        elif flag == "--config":
            paths[flag] = Path(value)
        elif flag == "--resume-from-checkpoint" and (Path(value) / CONFIG_NAME).is_file():
            paths[flag] = Path(value) / CONFIG_NAME
    return named, paths.get("--config"), paths.get("--resume-from-checkpoint")


def _agree(named: Mapping[str, str]) -> str:
    canonical = {where: backend_entry(name)[0] for where, name in named.items()}
    if len(set(canonical.values())) > 1:
        said = ", ".join(f"{where} says {named[where]}" for where in named)
        raise ConfigError(f"the backends differ: {said}; name one backend, or the same one everywhere")
    return next(iter(canonical.values()))


def _description(command: str, backend: str | None) -> str:
    what = {
        "train": "Train a backend on recorded episodes.",
        "train-vq": "Learn the VQ that minivla's action tokens stand for. It goes to OUTPUT_DIR/EXPERIMENT_NAME/vq.\n"
        "The settings are minivla's: give those that it will be trained with, best in one --config file.",
        "config": "Write a config file with every setting of a backend.",
        "statistics": "Compute what states and actions are normalised with, for data.statistics_path.",
    }[command]
    if backend is None:
        return f"{what}\n\nSettings of a backend: {_program(command)} BACKEND --help\n\n{backend_list()}"
    return what


def _wants_help(argv: Sequence[str]) -> bool:
    return "-h" in argv or "--help" in argv


def _environment_layer(environ: Mapping[str, str]) -> Layer:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for variable, path in (("VLA_OUTPUT_DIR", "output_dir"), ("VLA_DATA_ROOT", "data.data_root")):
        if environ.get(variable):
            values[path], origins[path] = environ[variable], variable
    if environ.get("WANDB_MODE", "disabled") != "disabled":
        values["training.use_wandb"], origins["training.use_wandb"] = True, "WANDB_MODE"
    return Layer(values=values, origins=origins)


def _with_whole_base_path(values: Mapping[str, Any], config_type: type[VLAConfig]) -> Mapping[str, Any]:
    """``values`` with the whole path of a base model on this machine, so that its checkpoints load from anywhere."""
    path = f"{config_type.block}.model_id"
    model_id = values.get(path, settings(config_type)[path].default)
    local = None if model_id is None else local_model(model_id)
    return values if local is None else {**values, path: str(local)}


def _resume_layers(given: Mapping[str, Any], config_type: type[VLAConfig]) -> tuple[Layer, Layer]:
    """The settings of the checkpoint to resume from, so that they need not be typed again, and what it brings along.

    The run goes on in the folder that the checkpoint is in. What it brings, such as its VQ, comes before what a
    file says of it. Empty where ``given`` names no checkpoint.
    """
    name = given.get("training.resume_from_checkpoint")
    if name is None:
        return Layer(values={}, origins={}), Layer(values={}, origins={})
    defaults = settings(config_type)
    folder, experiment = (given.get(path, defaults[path].default) for path in ("output_dir", "experiment_name"))
    checkpoint = CheckpointStore(Path(folder) / experiment).resolve(name)
    file = checkpoint / CONFIG_NAME
    if not file.is_file():
        raise CheckpointError(f"no {CONFIG_NAME} in {checkpoint}; expected a checkpoint-N directory of a training run")
    values = flatten(read_yaml(file), config_type, source=str(file))
    saved = build(config_type, values)
    located = saved.in_checkpoint(checkpoint)
    brought = {path: value_at(located, path) for path in defaults if value_at(located, path) != value_at(saved, path)}
    values |= {"output_dir": str(checkpoint.parent.parent), "experiment_name": checkpoint.parent.name}
    values.pop("training.resume_from_checkpoint", None)
    return (
        Layer(values=values, origins=dict.fromkeys(values, str(file))),
        Layer(values=brought, origins=dict.fromkeys(brought, str(checkpoint))),
    )
