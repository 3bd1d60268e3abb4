"""The devices that models run on."""

from __future__ import annotations

import torch

from crane_x7_vla.errors import ConfigError


def chosen_device(name: str) -> str:
    """``name``, where auto is a GPU if this machine has one, else cpu."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def torch_device(name: str) -> torch.device:
    """The device ``name``: cpu, cuda or cuda:N. Raises ConfigError where this machine does not have it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is '{name}'; expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is '{name}'; expected cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device is {name}, but torch {torch.__version__} sees {count} GPU(s); "
            "use the CPU: --device cpu, device:=cpu of a node"
        )
    return device
