# pyright: strict, reportMissingTypeStubs=false
"""Config files: strict YAML to dataclass and back. An unknown key is an error that suggests the nearest known one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from crane_x7_vla.backends import config_class
from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.config.schema import build, convert, settings, to_plain, value_at
from crane_x7_vla.errors import ConfigError

CONFIG_NAME = "config.yaml"
"""The effective config in the folder of a run, in each of its checkpoints and in merged models."""

OTHER_SPELLINGS: Mapping[str, str] = {
    "training.save_steps": "training.save_interval",
    "training.grad_accumulation": "training.gradient_accumulation_steps",
    "training.grad_accumulation_steps": "training.gradient_accumulation_steps",
}
"""Spellings of the documents that are read, in files and as flags, but not written."""


def load_config(source: Path | str | Mapping[str, Any], *, config_type: type[VLAConfig] | None = None) -> VLAConfig:
    """The config a YAML file, or the mapping of one, describes; what it leaves out has its default.

    config_type: the class to make instead of that of the file's ``backend``.
    Raises ConfigError that names the file and the key.
    """
    name = "config" if isinstance(source, Mapping) else str(source)
    mapping = source if isinstance(source, Mapping) else read_yaml(Path(source))
    if config_type is None:
        backend = backend_name(mapping, source=name)
        if backend is None:
            raise ConfigError(f"{name} names no backend; add a line such as: backend: openvla-oft")
        config_type = config_class(backend)
    try:
        return build(config_type, flatten(mapping, config_type, source=name))
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error


def dump_config(config: VLAConfig, *, note: Callable[[str], str] | None = None) -> str:
    """YAML text that ``load_config`` reads back as an equal config.

    note: called with each setting's path; what it returns becomes a comment beside the setting.
    """
    lines: list[str] = []
    open_tables: list[str] = []
    for path in settings(type(config)):
        *tables, key = path.split(".")
        shared = 0
        while shared < min(len(tables), len(open_tables)) and tables[shared] == open_tables[shared]:
            shared += 1
        for depth in range(shared, len(tables)):
            lines += [""] * (depth == 0) + ["  " * depth + tables[depth] + ":"]
        if not tables and open_tables:
            lines.append("")
        open_tables = tables
        value = to_plain(value_at(config, path))
        flow = None if isinstance(value, (list, dict)) else False  # [224, 224] and {name: wrist, …} on one line
        text = yaml.safe_dump({key: value}, default_flow_style=flow, sort_keys=False, width=10_000, allow_unicode=True)
        if isinstance(value, str) and text.count("\n") > 1:  # no comment may stand inside a text of several lines
            text = f"{key}: {json.dumps(value, ensure_ascii=False)}"
        first, *rest = text.rstrip("\n").split("\n")
        comment = note(path) if note is not None else ""
        indent = "  " * len(tables)
        lines.append(indent + first + (f"  # {comment}" if comment else ""))
        lines += [indent + line for line in rest]
    return "\n".join(lines) + "\n"


def read_yaml(path: Path) -> dict[str, Any]:
    """The table a YAML file holds. Raises ConfigError for a missing file, bad syntax, or a key given twice."""
    if not path.is_file():
        raise ConfigError(
            f"no config file {path}; write one with: "
            f"python -m crane_x7_vla.training.cli config --backend openvla-oft --output {path}"
        )
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {type(value).__name__}; expected a table of settings")
    return cast(dict[str, Any], value)


def backend_name(mapping: Mapping[str, Any], *, source: str) -> str | None:
    """The ``backend:`` of a config file, or None. Raises ConfigError where it is not text."""
    name = mapping.get("backend")
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"{source}: backend is {name!r}; expected a backend's name")
    return name


def flatten(mapping: Mapping[str, Any], config_type: type[VLAConfig], *, source: str) -> dict[str, Any]:
    """A config file's table as {path: value}, checked and converted, in the spellings of ``settings(config_type)``.

    ``backend_config:`` is read as the backend's own block, dotted keys as nested ones, and true or false in place of a
    table as its ``enabled`` (``image_aug: true``, as in the documents).
    Raises ConfigError for unknown keys, values of the wrong type, and settings given twice with different values.
    """
    known = settings(config_type)
    values: dict[str, Any] = {}
    for written, value in _leaves(mapping, known, prefix="", source=source):
        path = _canonical(written, config_type)
        if isinstance(value, bool) and f"{path}.enabled" in known:
            path = f"{path}.enabled"
        if path not in known:
            raise ConfigError(f"{source}: unknown key '{written}'{suggest(path, list(known))}")
        try:
            converted = convert(value, known[path].type, path)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
        if path in values and values[path] != converted:
            raise ConfigError(f"{source}: {path} is given twice, as {values[path]!r} and as {converted!r}")
        values[path] = converted
    if "backend" in values:  # any of the backend's aliases; the config keeps its own name
        if config_class(values["backend"]) is not config_type:
            raise ConfigError(f"{source}: backend '{values['backend']}' does not have a {config_type.__name__}")
        del values["backend"]
    return values


def suggest(unknown: str, known: list[str]) -> str:
    """'; did you mean …?' with the nearest of ``known`` paths or flags, by the whole or by the last part; or ''."""
    close = difflib.get_close_matches(unknown, known, n=1, cutoff=0.75)
    if not close:
        last = {name.rpartition(".")[2]: name for name in known}
        close = [last[name] for name in difflib.get_close_matches(unknown.rpartition(".")[2], last, n=1, cutoff=0.75)]
    return f"; did you mean '{close[0]}'?" if close else ""


def _canonical(path: str, config_type: type[VLAConfig]) -> str:
    if path.startswith("backend_config.") and config_type.block:
        path = config_type.block + path.removeprefix("backend_config")
    return OTHER_SPELLINGS.get(path, path)


def _leaves(table: Mapping[Any, Any], known: Mapping[str, Any], *, prefix: str, source: str) -> list[tuple[str, Any]]:
    """(path, value) of each entry; a table is one value where the setting itself is a table."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        if not isinstance(key, str):
            raise ConfigError(f"{source}: key {key!r}{f' in {prefix[:-1]}' if prefix else ''} is not text")
        path = prefix + key
        is_table = path == "backend_config" or any(name.startswith(path + ".") for name in known)
        if isinstance(value, bool) and f"{path}.enabled" in known:
            is_table = False
        if is_table and value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{source}: {path} is {value!r}; expected a table of settings")
        nested = cast(Mapping[Any, Any], value) if isinstance(value, Mapping) and path not in known else None
        if nested is not None and (nested or is_table):
            found += _leaves(nested, known, prefix=path + ".", source=source)
        elif not is_table:
            found.append((path, cast(Any, value)))
    return found


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys; here it is an error, since the other one would be ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in cast(list[tuple[yaml.Node, yaml.Node]], node.value):
            key = cast(Hashable, self.construct_object(key_node, deep=True))  # pyright: ignore[reportUnknownMemberType]
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
