"""Typed, described ROS parameters from a frozen dataclass, so that a node's settings are written in one place.

@dataclass(frozen=True, kw_only=True)
class Settings:
    rate: float = parameter(10.0, "samples per second, Hz")

settings = declare(node, Settings)
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node

from crane_x7_vla.errors import ConfigError

T = TypeVar("T")

_LISTS = {tuple[str, ...]: str, tuple[float, ...]: float}
_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def parameter(default: Any, description: str) -> Any:
    """A dataclass field that becomes a ROS parameter of the field's type: bool, int, float, str, or a tuple of them."""
    return dataclasses.field(default=default, metadata={"description": description})


def declare(node: Node, settings: type[T]) -> T:
    """Declare every field of the dataclass on ``node`` and return the values it was started with.

    An integer is welcome where a number is wanted. Raises ConfigError naming a parameter of the wrong type, and what
    the dataclass itself raises.
    """
    types = typing.get_type_hints(settings)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):  # pyright: ignore[reportArgumentType]
        # Types are checked here, with a sentence; rclpy's own check ends in a traceback and refuses 10 for 10.0.
        descriptor = ParameterDescriptor(description=field.metadata["description"], dynamic_typing=True)
        default = list(field.default) or None if isinstance(field.default, tuple) else field.default
        given = node.declare_parameter(field.name, default, descriptor).value
        values[field.name] = convert(field.name, given, types[field.name])
    return settings(**values)


def current(node: Node, settings: type[Any], name: str) -> Any:
    """The value ``name`` has now, for parameters that may change while the node runs; raises as ``declare``."""
    return convert(name, node.get_parameter(name).value, typing.get_type_hints(settings)[name])


def convert(name: str, value: Any, wanted: Any) -> Any:
    """``value`` of parameter ``name`` as type ``wanted``; raises ConfigError."""
    if wanted in _LISTS:
        # ROS has no empty list: as a default it arrives as None, and a command line cannot say it but as [""].
        if value is None:
            return ()
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"parameter '{name}' must be a list, got {value!r}; write {name}:=\"[…]\"")
        return tuple(convert(name, entry, _LISTS[wanted]) for entry in value if entry != "")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        hint = "; quote it twice: '\"…\"'" if wanted is str else ""
        raise ConfigError(f"parameter '{name}' must be {_SCALARS[wanted]}, got {value!r}{hint}")
    return value
