"""Folders of LoRA adapters, without peft, which takes seconds to import and which merged models do not need."""

from __future__ import annotations

from pathlib import Path

from crane_x7_vla.checkpoints.files import read_json, value_of

ADAPTERS = "lora_adapters"
"""Folder of the adapters in a checkpoint-N."""
ADAPTER_CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"
"""Where its configuration names the base model."""


def is_adapter_folder(directory: Path) -> bool:
    """Whether ``directory`` is what peft writes: adapters without a model."""
    return (directory / ADAPTER_CONFIG).is_file()


def base_model_of(directory: Path) -> str | None:
    """The base model that an adapter folder names; raises CheckpointError where that is no name."""
    path = directory / ADAPTER_CONFIG
    config = read_json(path)
    return None if config.get(BASE) is None else value_of(config, BASE, str, source=path)
