"""Folders of LoRA adapters, without peft, which takes seconds to import and which merged models do not need."""

from __future__ import annotations

from pathlib import Path

from crane_x7_vla.checkpoints.files import read_json, value_of
from crane_x7_vla.errors import CheckpointError

ADAPTERS = "lora_adapters"
"""Folder of the adapters in a checkpoint-N."""
ADAPTER_CONFIG = "adapter_config.json"
MERGE_INFO = "merge_info.json"
"""File of a merged model that names the adapters, as ``adapter_path``, and what folding them did."""
MODULES_FILE = "modules.safetensors"
"""What was trained in full beside them, in the checkpoint-N."""
BASE = "base_model_name_or_path"
"""Where its configuration names the base model."""


def is_adapter_folder(directory: Path) -> bool:
    """Whether ``directory`` is what peft writes: adapters without a model."""
    return (directory / ADAPTER_CONFIG).is_file()


def merge_command(adapters: Path) -> str:
    """What makes a model of a checkpoint's adapters: outputs/NAME/checkpoint-N/lora_adapters -> outputs/NAME_merged, as
    in the documents."""
    experiment = adapters.resolve().parent.parent
    merged = experiment.with_name(f"{experiment.name}_merged")
    return (
        f"python -m crane_x7_vla.scripts.merge_lora --adapter_path {adapters} --output_path {merged} "
        f"--base_model {base_model_of(adapters) or 'BASE_MODEL'}"
    )


def refuse_checkpoint(directory: Path) -> None:
    """Raise CheckpointError where ``directory`` is a checkpoint-N of adapters, or its folder of them: beside them are
    modules that were trained in full, so neither is a base model."""
    adapters = directory / ADAPTERS if (directory / ADAPTERS).is_dir() else directory
    if adapters.name == ADAPTERS and is_adapter_folder(adapters) and (adapters.parent / MODULES_FILE).is_file():
        raise CheckpointError(f"{directory} holds adapters, no model; merge first with: {merge_command(adapters)}")


def base_model_of(directory: Path) -> str | None:
    """The base model that an adapter folder names; raises CheckpointError where that is no name."""
    path = directory / ADAPTER_CONFIG
    config = read_json(path)
    return None if config.get(BASE) is None else value_of(config, BASE, str, source=path)
