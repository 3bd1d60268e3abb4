"""Folders of LoRA adapters, without peft, which takes seconds to import and which merged models do not need."""

from __future__ import annotations

from pathlib import Path

from crane_x7_vla.checkpoints.files import read_json

ADAPTERS = "lora_adapters"
"""Folder of the adapters in a checkpoint-N."""
ADAPTER_CONFIG = "adapter_config.json"


def is_adapter_folder(directory: Path) -> bool:
    """Whether ``directory`` is what peft writes: adapters without a model."""
    return (directory / ADAPTER_CONFIG).is_file()


def base_model_of(directory: Path) -> str | None:
    """The base model that an adapter folder names."""
    return read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
