"""The table of VLA backends. Looking a backend up imports its config; only ``backend_class`` imports torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crane_x7_vla.errors import ConfigError

if TYPE_CHECKING:
    from crane_x7_vla.config.base import VLAConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEntry:
    """package: folder below ``crane_x7_vla.backends`` with config.py, processor.py and backend.py."""

    package: str
    config: str
    backend: str
    summary: str
    aliases: tuple[str, ...] = ()


BACKENDS: Mapping[str, BackendEntry] = {
    "openvla": BackendEntry(
        package="openvla",
        config="OpenVLAConfig",
        backend="OpenVLABackend",
        summary="OpenVLA: one action at a time, written as tokens of the language model",
    ),
    "openvla-oft": BackendEntry(
        package="openvla_oft",
        config="OpenVLAOFTConfig",
        backend="OpenVLAOFTBackend",
        summary="OpenVLA with L1 regression of action chunks, proprioception and several cameras",
        aliases=("openvla_oft", "oft"),
    ),
    "minivla": BackendEntry(
        package="minivla",
        config="MiniVLAConfig",
        backend="MiniVLABackend",
        summary="OpenVLA with a small language model, chunks of actions as codes of a VQ, several cameras and frames",
    ),
}


def backend_entry(name: str) -> tuple[str, BackendEntry]:
    """(canonical name, entry) of a backend or one of its aliases; raises ConfigError that lists the backends."""
    for canonical, entry in BACKENDS.items():
        if name == canonical or name in entry.aliases:
            return canonical, entry
    raise ConfigError(f"unknown backend '{name}'; expected one of {', '.join(BACKENDS)}")


def config_class(name: str) -> type[VLAConfig]:
    """The config dataclass of a backend. Imports no torch."""
    _, entry = backend_entry(name)
    return getattr(importlib.import_module(f"{__name__}.{entry.package}.config"), entry.config)


def backend_class(name: str) -> Any:
    """The Backend class, called as ``(config, robot=RobotSpec, statistics=DatasetStatistics)``. Imports torch."""
    _, entry = backend_entry(name)
    return getattr(importlib.import_module(f"{__name__}.{entry.package}.backend"), entry.backend)
