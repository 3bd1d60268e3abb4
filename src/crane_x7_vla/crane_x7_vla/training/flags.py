# pyright: strict, reportMissingTypeStubs=false
"""A flag for every setting of a config, made from the config's own dataclasses.

A setting's flag is its path without the section: ``training.batch_size`` is ``--batch-size``,
``openvla_oft.proprio.enabled`` is ``--proprio-enabled`` and ``--no-proprio-enabled``, also ``--proprio`` and
``--no-proprio``. Underscores (``--batch_size=8``, as W&B sweeps write them), full paths (``--training.batch-size``) and
``--proprio=false`` are understood too.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Mapping, Sequence
from typing import Any, cast

from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.config.schema import Setting, describe, parse, settings, to_plain
from crane_x7_vla.config.yaml import OTHER_SPELLINGS, suggest
from crane_x7_vla.errors import ConfigError

_TAKEN = ("--config", "--backend", "--output", "--print-config", "--checkpoint", "--test-data", "--help")


def flag_table(config_type: type[VLAConfig]) -> dict[str, Setting]:
    """{'--batch-size': its setting, …}: every setting but the backend's name, other spellings left out.

    Raises ValueError where two settings would have the same flag: one of the fields needs another name.
    """
    table: dict[str, Setting] = {}
    for setting in settings(config_type).values():
        if setting.path == "backend":
            continue
        flag = _flag(setting.path, config_type)
        if flag in table or flag in _TAKEN:
            raise ValueError(f"{setting.path} cannot have the flag {flag}, which is taken")
        table[flag] = setting
    return table


def add_settings(
    parser: argparse.ArgumentParser,
    table: Mapping[str, Setting],
    config_type: type[VLAConfig],
    *,
    defaults_of: str | None = None,
) -> None:
    """Give ``parser`` the flags of ``table``, a group for each section. defaults_of: shown instead of the defaults."""
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


def normalize(argv: Sequence[str], table: Mapping[str, Setting]) -> list[str]:
    """Flags with underscores, full paths, a block's name or ``=true`` in the spelling that the parser knows."""
    paths = _spellings(table)
    boolean = {flag for flag, setting in table.items() if setting.type is bool}
    result: list[str] = []
    for token in argv:
        flag, equals, value = token.partition("=")
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
            negated = flag.startswith("--no-")
            positive = "--" + flag[5:] if negated else flag
            if positive in paths:
                flag = "--no-" + paths[positive][2:] if negated else paths[positive]
            if flag in boolean and equals:
                answers = {"true": flag, "1": flag, "false": "--no-" + flag[2:], "0": "--no-" + flag[2:]}
                if value.lower() not in answers:
                    raise ConfigError(f"{flag} is {value!r}; expected true or false, or --no-{flag[2:]}")
                flag, equals, value = answers[value.lower()], "", ""
        result.append(flag + equals + value)
    return result


def parse_known(
    parser: argparse.ArgumentParser, argv: Sequence[str], *, flags: Mapping[str, Setting]
) -> argparse.Namespace:
    """Parse; raises ConfigError that suggests the nearest flag for an unknown one."""
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [*flags, *(f"--no-{flag[2:]}" for flag, setting in flags.items() if setting.type is bool)]
        word = unknown[0].partition("=")[0]
        hint = suggest(word, known) if word.startswith("-") else ""
        raise ConfigError(f"unknown argument '{word}'{hint or f'; see: {parser.prog} --help'}")
    return options


def flag_values(options: argparse.Namespace, table: Mapping[str, Setting]) -> dict[str, Any]:
    """{path: value} of the flags that were given. Raises ConfigError naming the flag whose value is of another type."""
    given = vars(options)
    values: dict[str, Any] = {}
    for flag, setting in table.items():
        if setting.path in given:
            value = given[setting.path]
            values[setting.path] = value if isinstance(value, bool) else parse(value, setting.type, flag)
    return values


def switches(config_type: type[VLAConfig]) -> set[str]:
    """Every spelling of the flags that take no value, with dashes."""
    table = flag_table(config_type)
    boolean = {flag for flag, setting in table.items() if setting.type is bool}
    boolean |= {written for written, flag in _spellings(table).items() if flag in boolean}
    return boolean | {"--no-" + flag[2:] for flag in boolean}


def _spellings(table: Mapping[str, Setting]) -> dict[str, str]:
    """{'--openvla-oft.proprio.enabled': '--proprio-enabled', '--proprio.enabled', '--proprio': the same, …}."""
    spellings: dict[str, str] = {}
    for flag, setting in table.items():
        for path in (setting.path, setting.path.removesuffix(".enabled")):
            for written in (path.partition(".")[2], path):
                if "." in path:
                    spellings["--" + written.replace("_", "-")] = flag
    return spellings


def _flag(path: str, config_type: type[VLAConfig]) -> str:
    section, _, rest = path.partition(".")
    name = rest if section in ("data", "training", config_type.block) and rest else path
    return "--" + name.replace(".", "-").replace("_", "-")


def _other_flags(setting: Setting, config_type: type[VLAConfig]) -> list[str]:
    others = [old for old, path in OTHER_SPELLINGS.items() if path == setting.path]
    if setting.path.endswith(".enabled"):
        others.append(setting.path.removesuffix(".enabled"))  # as YAML reads ``film: false``
    return [_flag(path, config_type) for path in others]


def _default_text(setting: Setting) -> str:
    plain = to_plain(setting.default)
    if isinstance(plain, list):
        items = cast(list[Any], plain)
        return ",".join(str(cast(Any, item)["name"]) if isinstance(item, dict) else str(item) for item in items)
    return "none" if plain is None else str(plain)


def _metavar(setting: Setting) -> str:
    choices = typing.get_args(setting.type)
    if typing.get_origin(setting.type) is typing.Literal:
        return "{" + ",".join(map(str, choices)) + "}"
    return {"an integer": "INT", "a number": "FLOAT", "text": "TEXT"}.get(
        describe(setting.type).removesuffix(", or none"), "LIST"
    )
