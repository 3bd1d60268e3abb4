"""The training command line: a flag for every setting of a config, made from the config's own dataclasses. No torch.

A setting's flag is its path without the section: ``training.batch_size`` is ``--batch-size``,
``openvla_oft.film.enabled`` is ``--film-enabled`` and ``--no-film-enabled``. Underscores (``--batch_size=8``, as W&B
sweeps write them), full paths (``--training.batch-size``) and ``--film-enabled=false`` are understood too.
Precedence: defaults, then environment variables, then the YAML file, then flags.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from crane_x7_vla.backends import BACKENDS, backend_entry, config_class
from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.config.schema import Setting, build, describe, parse, settings, to_plain, value_at
from crane_x7_vla.config.yaml import (
    OTHER_SPELLINGS,
    backend_name,
    dump_config,
    flatten,
    load_config,
    read_yaml,
    suggest,
)
from crane_x7_vla.errors import ConfigError

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


@dataclass(frozen=True, slots=True)
class BackendsCommand:
    """backends: list them."""


Command = TrainCommand | ConfigCommand | EvaluateCommand | BackendsCommand


def parse_command(argv: Sequence[str], *, environ: Mapping[str, str]) -> Command:
    """The command a user typed. Raises ConfigError with one line; ``--help`` prints and exits as argparse does."""
    command, rest = _split_command(argv)
    if command == "backends":
        _parse_known(_parser("backends"), rest, flags={})
        return BackendsCommand()
    if command == "evaluate":
        return _parse_evaluate(rest)
    return _parse_config(command, rest, environ)


def parse_statistics(argv: Sequence[str], *, environ: Mapping[str, str]) -> ConfigCommand:
    """What compute_crane_x7_norm_stats was asked: the same settings as training, and the file to write."""
    command = _parse_config("statistics", argv, environ)
    assert isinstance(command, ConfigCommand)
    return command


def effective_config(
    config_type: type[VLAConfig],
    *,
    environ: Mapping[str, str],
    file: Mapping[str, Any],
    file_name: str,
    flags: Mapping[str, Any],
    flag_names: Mapping[str, str],
) -> tuple[VLAConfig, Mapping[str, str]]:
    """(config, origin of each setting) of defaults < environment < file < flags, each {path: value}."""
    values: dict[str, Any] = {}
    origins = dict.fromkeys(settings(config_type), "default")
    environment, variables = _from_environment(environ)
    layers = (
        (environment, variables),
        (file, dict.fromkeys(file, file_name)),
        (flags, flag_names),
    )
    for layer, names in layers:
        for path in layer:
            rival = _EXCLUSIVE.get(path)
            if layer[path] is not None and rival is not None and layer.get(rival) is None and rival in values:
                values[rival] = None
        values.update(layer)
        origins.update({path: names[path] for path in layer})
    return build(config_type, values), origins


def flag_table(config_type: type[VLAConfig]) -> dict[str, Setting]:
    """{'--batch-size': its setting, …}: every setting but the backend's name, other spellings left out.

    Raises ValueError where two settings would have the same flag: one of the fields needs another name.
    """
    table: dict[str, Setting] = {}
    for setting in settings(config_type).values():
        if setting.path == "backend":
            continue
        flag = _flag(setting.path, config_type)
        if flag in table or flag in ("--config", "--backend", "--output", "--print-config", "--checkpoint"):
            raise ValueError(f"{setting.path} cannot have the flag {flag}, which is taken")
        table[flag] = setting
    return table


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
    rest = {"": "COMMAND …", "evaluate": "--checkpoint DIR [settings]", "backends": ""}.get(
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
        "config": "write a config file with every setting of a backend",
        "evaluate": "errors of a checkpoint on recorded episodes",
        "backends": "list the backends",
    }
    listing = "\n".join(f"  {name:<10}{text}" for name, text in commands.items())
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


def _parse_config(command: str, argv: Sequence[str], environ: Mapping[str, str]) -> TrainCommand | ConfigCommand:
    named, file = _find_backend(argv)
    mapping = read_yaml(file) if file is not None else {}
    if file is not None:
        in_file = backend_name(mapping, source=str(file))
        if in_file is not None:
            named[str(file)] = in_file
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
    if command != "train":
        place = "standard output" if command == "config" else "dataset_statistics.json in the data root"
        parser.add_argument("--output", type=Path, metavar="FILE", help=f"file to write (default: {place})")
    else:
        parser.add_argument(
            "--print-config",
            action="store_true",
            help="print the effective settings and where they come from, and stop",
        )
    _add_settings(parser, table, config_type)
    options = _parse_known(parser, _normalize(argv, table), flags=table)
    flags = _flag_values(options, table)
    config, origins = effective_config(
        config_type,
        environ=environ,
        file=flatten(mapping, config_type, source=str(file)),
        file_name=str(file),
        flags=flags,
        flag_names={setting.path: flag for flag, setting in table.items()},
    )
    if command != "train":
        return ConfigCommand(config=config, output=options.output)
    return TrainCommand(config=config, origins=origins, print_config=options.print_config)


def _parse_evaluate(argv: list[str]) -> EvaluateCommand:
    table = {flag: setting for flag, setting in flag_table(VLAConfig).items() if setting.path in EVALUATION_SETTINGS}
    parser = _parser("evaluate", "Errors of a checkpoint on recorded episodes, by joint and by row of the chunk.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a checkpoint-N directory")
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
    _add_settings(parser, table, VLAConfig, defaults_of="the checkpoint's")
    options = _parse_known(parser, _normalize(argv, table), flags=table)
    checkpoint: Path = options.checkpoint
    if not (checkpoint / "config.yaml").is_file():
        raise ConfigError(f"no config.yaml in {checkpoint}; expected a checkpoint-N directory of a training run")
    trained = load_config(checkpoint / "config.yaml")
    values = {path: value_at(trained, path) for path in settings(type(trained)) if path != "backend"}
    if options.config is not None:
        mapping = read_yaml(options.config)
        in_file = backend_name(mapping, source=str(options.config))
        if in_file is not None:
            _agree({str(options.config): in_file, str(checkpoint): trained.backend})
        file = flatten(mapping, type(trained), source=str(options.config))
        values.update({path: value for path, value in file.items() if path in EVALUATION_SETTINGS})
    values.update(_flag_values(options, table))
    return EvaluateCommand(
        config=build(type(trained), values),
        checkpoint=checkpoint,
        test_data=options.test_data,
        output=options.output,
    )


def _find_backend(argv: Sequence[str]) -> tuple[dict[str, str], Path | None]:
    """({where it is written: backend}, config file), before the flags are known, which depend on the backend."""
    valueless = {"--print-config", "--help", "-h"}
    for name in BACKENDS:
        config_type = config_class(name)
        table = flag_table(config_type)
        boolean = {flag for flag, setting in table.items() if setting.type is bool}
        boolean |= {written for written, flag in _dotted(table).items() if flag in boolean}
        valueless |= boolean | {"--no-" + flag[2:] for flag in boolean}
    named: dict[str, str] = {}
    file: Path | None = None
    position = 0
    while position < len(argv):
        flag, equals, value = argv[position].partition("=")
        position += 1
        if not flag.startswith("-"):
            named.setdefault("the first argument", argv[position - 1])
            continue
        if flag.replace("_", "-") in valueless:
            continue
        if not equals:
            value = argv[position] if position < len(argv) else ""
            position += 1
        if flag == "--backend":
            named["--backend"] = value
        elif flag == "--config":
            file = Path(value)
    return named, file


def _agree(named: Mapping[str, str]) -> str:
    canonical = {where: backend_entry(name)[0] for where, name in named.items()}
    if len(set(canonical.values())) > 1:
        said = ", ".join(f"{where} says {named[where]}" for where in named)
        raise ConfigError(f"the backends differ: {said}; name one backend, or the same one everywhere")
    return next(iter(canonical.values()))


def _description(command: str, backend: str | None) -> str:
    what = {
        "train": "Train a backend on recorded episodes.",
        "config": "Write a config file with every setting of a backend.",
        "statistics": "Compute what states and actions are normalised with, for data.statistics_path.",
    }[command]
    if backend is None:
        return f"{what}\n\nSettings of a backend: {_program(command)} BACKEND --help\n\n{backend_list()}"
    return what


def _wants_help(argv: Sequence[str]) -> bool:
    return "-h" in argv or "--help" in argv


def _flag(path: str, config_type: type[VLAConfig]) -> str:
    section, _, rest = path.partition(".")
    name = rest if section in ("data", "training", config_type.block) and rest else path
    return "--" + name.replace(".", "-").replace("_", "-")


def _other_flags(setting: Setting, config_type: type[VLAConfig]) -> list[str]:
    return [_flag(old, config_type) for old, path in OTHER_SPELLINGS.items() if path == setting.path]


def _add_settings(
    parser: argparse.ArgumentParser,
    table: Mapping[str, Setting],
    config_type: type[VLAConfig],
    *,
    defaults_of: str | None = None,
) -> None:
    groups: dict[str, Any] = {}
    for flag, setting in table.items():
        section = setting.path.partition(".")[0] if "." in setting.path else "experiment"
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        default = defaults_of or _default_text(setting)
        text = f"{setting.doc} (default: {default})".replace("%", "%%")
        names = [flag, *_other_flags(setting, config_type)]
        if setting.type is bool:
            groups[section].add_argument(
                *names, dest=setting.path, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            groups[section].add_argument(
                *names, dest=setting.path, default=argparse.SUPPRESS, metavar=_metavar(setting), help=text
            )


def _default_text(setting: Setting) -> str:
    plain = to_plain(setting.default)
    if isinstance(plain, list) and plain and isinstance(plain[0], dict):
        return ",".join(str(item["name"]) for item in plain)
    if isinstance(plain, list):
        return ",".join(map(str, plain))
    return "none" if plain is None else str(plain)


def _metavar(setting: Setting) -> str:
    choices = typing.get_args(setting.type)
    if typing.get_origin(setting.type) is typing.Literal:
        return "{" + ",".join(map(str, choices)) + "}"
    return {"an integer": "INT", "a number": "FLOAT", "text": "TEXT"}.get(
        describe(setting.type).removesuffix(", or none"), "LIST"
    )


def _dotted(table: Mapping[str, Setting]) -> dict[str, str]:
    """{'--openvla-oft.film.enabled': '--film-enabled', '--film.enabled': the same, …}."""
    whole = {"--" + setting.path.replace("_", "-"): flag for flag, setting in table.items()}
    within = {"--" + setting.path.partition(".")[2].replace("_", "-"): flag for flag, setting in table.items()}
    return {**within, **whole}


def _normalize(argv: Sequence[str], table: Mapping[str, Setting]) -> list[str]:
    """Flags with underscores, full paths or ``=true`` in the spelling that the parser knows."""
    paths = _dotted(table)
    boolean = {flag for flag, setting in table.items() if setting.type is bool}
    result: list[str] = []
    for token in argv:
        flag, equals, value = token.partition("=")
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
            negated = flag.startswith("--no-")
            if "." in flag:
                flag = paths.get("--" + flag[5:] if negated else flag, flag)
                flag = "--no-" + flag[2:] if negated and flag in table else flag
            if flag in boolean and equals:
                answers = {"true": flag, "1": flag, "false": "--no-" + flag[2:], "0": "--no-" + flag[2:]}
                if value.lower() not in answers:
                    raise ConfigError(f"{flag} is {value!r}; expected true or false, or --no-{flag[2:]}")
                flag, equals, value = answers[value.lower()], "", ""
        result.append(flag + equals + value)
    return result


def _parse_known(
    parser: argparse.ArgumentParser, argv: Sequence[str], *, flags: Mapping[str, Setting]
) -> argparse.Namespace:
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [*flags, *(f"--no-{flag[2:]}" for flag, setting in flags.items() if setting.type is bool)]
        word = unknown[0].partition("=")[0]
        hint = suggest(word, known) if word.startswith("-") else ""
        raise ConfigError(f"unknown argument '{word}'{hint or f'; see: {parser.prog} --help'}")
    return options


def _flag_values(options: argparse.Namespace, table: Mapping[str, Setting]) -> dict[str, Any]:
    given = vars(options)
    values: dict[str, Any] = {}
    for flag, setting in table.items():
        if setting.path in given:
            value = given[setting.path]
            values[setting.path] = value if isinstance(value, bool) else parse(value, setting.type, flag)
    return values


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for variable, path in (("VLA_OUTPUT_DIR", "output_dir"), ("VLA_DATA_ROOT", "data.data_root")):
        if environ.get(variable):
            values[path], names[path] = environ[variable], variable
    if environ.get("WANDB_MODE", "disabled") != "disabled":
        values["training.use_wandb"], names["training.use_wandb"] = True, "WANDB_MODE"
    return values, names
