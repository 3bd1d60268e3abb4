"""What settings a config has: path, type, default and help text of each, read from the dataclasses themselves.

YAML files and the command line are two ways of writing ``{path: value}`` down; ``build`` turns it into the config.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

import yaml

from crane_x7_vla.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of a config. path: dotted, such as 'training.batch_size'. doc: one line."""

    path: str
    type: Any
    default: Any
    doc: str

    @property
    def optional(self) -> bool:
        """Whether None is a value of it."""
        return _without_none(self.type) is not self.type


@functools.cache
def settings(config_type: type) -> Mapping[str, Setting]:
    """Every setting of a config class by its path, in the order of declaration."""
    return types.MappingProxyType({setting.path: setting for setting in _walk(config_type(), prefix="")})


def build(config_type: type[T], values: Mapping[str, Any]) -> T:
    """The config with ``values`` {path: value} in place of its defaults. Raises ConfigError where one is invalid."""
    return _replace(config_type(), values, prefix="")


def convert(value: Any, kind: Any, path: str) -> Any:
    """A value as YAML gives it, checked against the type of the setting ``path``, lists as tuples.

    Numbers such as 5e-4, which YAML 1.1 reads as text, are understood; a bare no is, where 'no' is a choice.
    Raises ConfigError that says what was expected.
    """
    bare = _without_none(kind)
    if value is None and bare is not kind:
        return None
    try:
        return _convert(value, bare, path)
    except _MismatchError:
        raise ConfigError(f"{path} is {value!r}; expected {describe(kind)}") from None


def parse(text: str, kind: Any, path: str) -> Any:
    """A value as typed on a command line: none, 3, 5e-4, a,b or 224x224 for lists, or YAML in [] or {}."""
    bare = _without_none(kind)
    if bare is not kind and text.lower() in ("none", "null"):
        return None
    value: Any = text
    if typing.get_origin(bare) is tuple:
        value = _parse_list(text, bare, path)
    elif typing.get_origin(bare) is not None and typing.get_origin(bare) is not Literal:
        value = _parse_yaml(text, path)
    elif bare is int:
        value = int(text) if text.removeprefix("-").isdecimal() else text
    elif bare is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    return convert(value, kind, path)


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def describe(kind: Any) -> str:
    """A type in words, for messages and help."""
    bare = _without_none(kind)
    if bare is not kind:
        return f"{describe(bare)}, or none"
    origin = typing.get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(kind))
    if origin is tuple:
        item = _NAMES.get(typing.get_args(kind)[0], "a table").removeprefix("an ").removeprefix("a ")
        return f"a list of {item} values" if item == "text" else f"a list of {item}s"
    return _NAMES.get(kind, "a table")


def to_plain(value: Any) -> Any:
    """A setting's value as YAML holds it: tuples as lists, dataclasses as tables."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def value_at(config: Any, path: str) -> Any:
    """The value of the setting ``path``."""
    return functools.reduce(getattr, path.split("."), config)


def _walk(node: Any, *, prefix: str) -> list[Setting]:
    hints = typing.get_type_hints(type(node))
    docs = field_docs(type(node))
    found: list[Setting] = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        path = prefix + field.name
        if dataclasses.is_dataclass(value):
            found += _walk(value, prefix=path + ".")
        else:
            found.append(Setting(path=path, type=hints[field.name], default=value, doc=docs.get(field.name, "")))
    return found


@functools.cache
def field_docs(config_type: type) -> Mapping[str, str]:
    """The string literal below each field of a dataclass, its bases included."""
    docs: dict[str, str] = {}
    for base in reversed(config_type.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for line, below in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(line, ast.AnnAssign)
                and isinstance(line.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                docs[line.target.id] = inspect.cleandoc(below.value.value)
    return types.MappingProxyType(docs)


def _replace(node: Any, values: Mapping[str, Any], *, prefix: str) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        path = prefix + field.name
        old = getattr(node, field.name)
        if dataclasses.is_dataclass(old):
            if any(key.startswith(path + ".") for key in values):
                changes[field.name] = _replace(old, values, prefix=path + ".")
        elif path in values:
            changes[field.name] = values[path]
    return dataclasses.replace(node, **changes)


def _without_none(kind: Any) -> Any:
    """``X`` of ``X | None``; any other type itself."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        rest = [item for item in typing.get_args(kind) if item is not type(None)]
        if len(rest) == 1 and len(typing.get_args(kind)) == 2:
            return rest[0]
        raise TypeError(f"settings cannot be of type {kind}")
    return kind


class _MismatchError(Exception):
    """The value does not fit the type; ``convert`` says it in words."""


def _convert(value: Any, kind: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return _convert_choice(value, typing.get_args(kind))
    if origin is tuple:
        return _convert_list(value, typing.get_args(kind), path)
    if origin is not None and issubclass(origin, Mapping):
        key_kind, value_kind = typing.get_args(kind)
        if not isinstance(value, Mapping):
            raise _MismatchError
        return {convert(k, key_kind, path): convert(v, value_kind, f"{path}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _convert_item(value, kind, path)
    return _convert_scalar(value, kind)


def _convert_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    if value is False and "no" in choices:
        return "no"
    if value not in choices or isinstance(value, bool):
        raise _MismatchError
    return value


def _convert_list(value: Any, kinds: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _MismatchError
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise _MismatchError
    return tuple(convert(item, kinds[index], f"{path}[{index}]") for index, item in enumerate(value))


def _convert_scalar(value: Any, kind: Any) -> Any:
    if kind is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise _MismatchError from None
    accepted = {float: (int, float), int: int, bool: bool, str: str}
    if kind not in accepted:
        raise TypeError(f"settings cannot be of type {kind}")
    if not isinstance(value, accepted[kind]) or (isinstance(value, bool) and kind is not bool):
        raise _MismatchError
    return kind(value)


def _convert_item(value: Any, kind: type, path: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise _MismatchError
    known = settings(kind)
    for key in value:
        if key not in known:
            raise ConfigError(f"unknown key '{path}.{key}'; expected one of {', '.join(known)}")
    # Not ``build``: a default that follows from another field, such as a topic from the name, must be made anew.
    return kind(**{key: convert(item, known[key].type, f"{path}.{key}") for key, item in value.items()})


def _parse_list(text: str, kind: Any, path: str) -> Any:
    if text.startswith("["):
        return _parse_yaml(text, path)
    item = typing.get_args(kind)[0]
    parts = [part.strip() for part in text.split(",")] if text else []
    if item in (int, float) and len(parts) == 1:
        parts = parts[0].split("x")
    if dataclasses.is_dataclass(item):
        return [{"name": part} for part in parts]
    return [parse(part, item, path) for part in parts]


def _parse_yaml(text: str, path: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is {text!r}; expected YAML such as [a, b] or {{a: b}}") from error
