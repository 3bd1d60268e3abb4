"""Runs in the layout that Prismatic trains in: openvla-7b-prismatic and all releases of MiniVLA.

RUN/config.json, dataset_statistics.json and checkpoints/step-*.pt = {"model": {"vision_backbone", "projector",
"llm_backbone"}}. The names are those of convert_openvla_weights_to_hf.py (openvla c8f03f4).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crane_x7_vla.checkpoints.architecture import architecture
from crane_x7_vla.checkpoints.files import read_json
from crane_x7_vla.checkpoints.layouts import CONFIG_FILE, require_fit
from crane_x7_vla.checkpoints.torch_files import read_torch, shapes_in, state_of
from crane_x7_vla.errors import CheckpointError

logger = logging.getLogger(__name__)

_FOLDER = "checkpoints"
_LATEST = "latest-checkpoint.pt"
_EMBEDDING = "language_model.model.embed_tokens.weight"
_OUTPUT = "language_model.lm_head.weight"
_TOWERS = {"featurizer": "featurizer", "dino_featurizer": "featurizer", "siglip_featurizer": "fused_featurizer"}


def _base_vlms() -> dict[str, Mapping[str, Any]]:
    llama, qwen = architecture("openvla-7b"), architecture("minivla")
    # Runs use the published Llama 2, whose epsilon is not the default that OpenVLA's conversion falls back to.
    llama = {**llama, "text_config": {**llama["text_config"], "rms_norm_eps": 1e-5}}
    return {
        "prism-dinosiglip-224px+7b": llama,
        "prism-dinosiglip-224px-controlled+7b": llama,
        "prism-qwen25-dinosiglip-224px+0_5b": {**qwen, "llm_backbone_id": "qwen25-0_5b-pure"},
        "prism-qwen25-extra-dinosiglip-224px+0_5b": qwen,
    }


BASE_VLMS: Mapping[str, Mapping[str, Any]] = _base_vlms()
"""config.json, in the Hugging Face layout, of the models that runs start from (openvla-mini conf/models.py)."""


def is_native(directory: Path) -> bool:
    """Whether ``directory`` is a run in this layout."""
    return any((directory / _FOLDER).glob("*.pt"))


def native_published(directory: Path) -> Mapping[str, Any]:
    """The config.json that the run's model has in the Hugging Face layout; raises CheckpointError."""
    path = directory / CONFIG_FILE
    settings = read_json(path).get("vla")
    name = settings.get("base_vlm") if isinstance(settings, dict) else None
    if not isinstance(name, str):
        raise CheckpointError(f"{path} names no vla.base_vlm; expected the config.json of an OpenVLA or MiniVLA run")
    if name not in BASE_VLMS:
        raise CheckpointError(f"{path}: vla.base_vlm is {name!r}; expected one of {', '.join(BASE_VLMS)}")
    return BASE_VLMS[name]


def read_native(directory: Path, expected: Mapping[str, tuple[int, ...]], *, dead: str) -> dict[str, Tensor]:
    """Exactly the expected weights, named as in the Hugging Face layout, see ``layouts.read_tensors``.

    Of several checkpoints the latest. Raises one CheckpointError that lists what does not fit.
    """
    path = _checkpoint(directory)
    tensors = _tensors(path)
    if _OUTPUT in tensors and _OUTPUT not in expected and _EMBEDDING in expected:
        _drop_tied(tensors, path)
    require_fit(shapes_in(tensors), expected, dead=dead, source=path)
    logger.info("weights of %s", path)
    return {key: tensors[key].clone() for key in expected}


def read_native_dead(directory: Path, dead: str) -> dict[str, Tensor]:
    """The weights of a run that match ``dead``, named as in the Hugging Face layout."""
    tensors = _tensors(_checkpoint(directory))
    return {key: value.clone() for key, value in tensors.items() if re.fullmatch(dead, key)}


def _tensors(path: Path) -> dict[str, Tensor]:
    model = read_torch(path).get("model")
    if not isinstance(model, Mapping):
        raise CheckpointError(f"{path} has no 'model'; expected a checkpoint of an OpenVLA or MiniVLA run")
    if not model.get("vision_backbone"):
        raise CheckpointError(
            f"{path} has no vision_backbone: the run kept it frozen, so its weights are timm's. Convert the run to the "
            "Hugging Face layout with OpenVLA's convert_openvla_weights_to_hf.py, which adds them"
        )
    tensors: dict[str, Tensor] = {}
    for part, state in model.items():
        named = state_of(state, what=f"{path}: {part}").items()
        tensors |= {_published_name(str(part), key): value for key, value in named}
    return tensors


def _checkpoint(directory: Path) -> Path:
    folder = directory / _FOLDER
    latest = folder / _LATEST
    return latest if latest.is_file() else max(folder.glob("*.pt"))  # step-NNNNNN-…, so the last name is the latest


def _published_name(part: str, key: str) -> str:
    first, _, rest = key.partition(".")
    if part == "vision_backbone" and first in _TOWERS:
        return f"vision_backbone.{_TOWERS[first]}.{rest}".replace(".gamma", ".scale_factor")
    if part == "projector" and (layer := re.fullmatch(r"projector\.(0|2|4)\.(weight|bias)", key)):
        return f"projector.fc{int(layer[1]) // 2 + 1}.{layer[2]}"
    if part == "llm_backbone" and first == "llm":
        return f"language_model.{rest}"
    return f"{part}.{key}"


def _drop_tied(tensors: dict[str, Tensor], path: Path) -> None:
    """Tied embeddings are stored under both names."""
    output, embedding = tensors.pop(_OUTPUT), tensors.get(_EMBEDDING)
    if embedding is not None and not torch.equal(output, embedding):
        raise CheckpointError(
            f"{path}: llm.lm_head.weight differs from llm.model.embed_tokens.weight, but this language model has one "
            "matrix for both; the run untied them, which is not read"
        )
