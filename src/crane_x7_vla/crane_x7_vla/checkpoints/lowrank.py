"""Low-rank updates in published files, folded into the weights they belong to. No peft, no model: tensors by name.

peft writes them in two ways: as a folder of adapters (adapter_config.json, adapter_model.safetensors), or, where a
whole adapted module is saved, live, with ``base_layer`` and ``lora_A.default`` beside each other in one state dict.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from crane_x7_vla.checkpoints.adapters import ADAPTER_CONFIG, BASE
from crane_x7_vla.checkpoints.files import list_of, read_json, value_of
from crane_x7_vla.checkpoints.layouts import require_fit, tensor_shapes
from crane_x7_vla.errors import CheckpointError

logger = logging.getLogger(__name__)

_WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_BASE_LAYER = ".base_layer."
_LIVE_ALPHA = 16
_UNREAD = ("use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform", "modules_to_save", "lora_bias")
"""Settings of peft with which the update is another one than B A."""
_KEEP_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights with which peft leaves the base's weights as they are. With the others (pissa, olora,
corda, loftq) it takes from them what the adapters begin with, so that B A is no update of the published weights."""

_Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Halves:
    """What follows a layer's name in the keys of its adapter."""

    a: str
    b: str

    @property
    def both(self) -> tuple[str, str]:
        return self.a, self.b

    def shapes(self, layers: Mapping[str, _Shape], ranks: Mapping[str, int]) -> dict[str, _Shape]:
        """{key: shape} of the halves that belong to ``layers``, {name: shape of the weight}, of these ranks."""
        shapes: dict[str, _Shape] = {}
        for name, (outputs, *inputs) in layers.items():
            shapes[name + self.a] = (ranks[name], *inputs)
            shapes[name + self.b] = (outputs, ranks[name], *[1] * (len(inputs) - 1))
        return shapes


_SAVED = _Halves(".lora_A.weight", ".lora_B.weight")
_LIVE = _Halves(".lora_A.default.weight", ".lora_B.default.weight")


class _Folding:
    """Adds updates to weights in float32, stores each weight as the type it has, and knows what that loses."""

    def __init__(self) -> None:
        self.layers = 0
        self._update = self._lost = 0.0

    def __call__(self, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """weight + scale · B A. A linear layer has a [r, in] and b [out, r]; a convolution [r, in, h, w] and
        [out, r, 1, 1]."""
        update = scale * (b.float().flatten(1) @ a.float().flatten(1)).view(weight.shape)
        stored = (weight.float() + update).to(weight.dtype)
        self.layers += 1
        self._update += float(update.square().sum())
        self._lost += float((stored.float() - weight.float() - update).square().sum())
        return stored

    def say(self, source: Path) -> None:
        share = (self._lost / self._update) ** 0.5 if self._update else 0.0
        logger.info(
            "%s: %d layers folded in; storing them loses %.1f%% of the change", source, self.layers, 100 * share
        )


def fold_live(tensors: Mapping[str, Tensor], *, source: Path) -> dict[str, Tensor]:
    """A state dict with live adapters as that of the bare module; each weight keeps its type.

    Their scale is not in the file: OpenVLA-OFT trains rank r with alpha min(r, 16) (finetune.py at 213c5ff). Raises
    CheckpointError where an adapted layer lacks its adapter or half of it, or where it does not fit.
    """
    halves = {key: value for key, value in tensors.items() if key.endswith(_LIVE.both)}
    bare = {key.replace(_BASE_LAYER, "."): value for key, value in tensors.items() if key not in halves}
    names = {key.removesuffix(end) for key in halves for end in _LIVE.both if key.endswith(end)}
    names |= {key.partition(_BASE_LAYER)[0] for key in tensors if _BASE_LAYER in key}
    layers = {name: tuple(bare[f"{name}.weight"].shape) for name in names if f"{name}.weight" in bare}
    found = {key: tuple(value.shape) for key, value in halves.items()}
    ranks = {name: found.get(name + _LIVE.a, (0,))[0] for name in layers}
    require_fit(found, _LIVE.shapes(layers, ranks), dead=None, source=source)
    fold = _Folding()
    for name in layers:
        a, b = halves[name + _LIVE.a], halves[name + _LIVE.b]
        bare[f"{name}.weight"] = fold(bare[f"{name}.weight"], a, b, min(len(a), _LIVE_ALPHA) / len(a))
    if layers:
        fold.say(source)
    return bare


def fold_adapters(weights: dict[str, Tensor], folder: Path, *, dead: str) -> None:
    """Add the adapters of a peft folder to ``weights``, in place; each weight keeps its type.

    weights: of the base model by its names. dead: pattern of the weights that no one reads; their adapters are left
    aside. Raises CheckpointError where the adapters do not fit, or miss a layer that their configuration targets.
    """
    source = folder / ADAPTER_CONFIG
    config = read_json(source)
    rank, scale = _rank_and_scale(config, source)
    path = folder / _WEIGHTS_FILE
    found = {key.removeprefix(_PREFIX): shape for key, shape in tensor_shapes(path).items()}
    matrices = {key.removesuffix(".weight"): value for key, value in weights.items() if key.endswith(".weight")}
    names = [name for name, value in matrices.items() if value.ndim > 1]
    left_out = set(_named(config, "exclude_modules", names, source))
    layers = {
        name: tuple(matrices[name].shape)
        for name in _named(config, "target_modules", names, source)
        if name not in left_out
    }
    frozen = {name: f"{name}{_BASE_LAYER}weight" for name in layers if f"{name}{_BASE_LAYER}weight" in found}
    expected = _SAVED.shapes(layers, dict.fromkeys(layers, rank)) | {key: layers[name] for name, key in frozen.items()}
    require_fit(found, expected, dead=dead, source=path)
    fold = _Folding()
    with safe_open(path, framework="pt") as file:
        for name, key in frozen.items():  # peft saves adapted output matrices beside their adapters
            value = file.get_tensor(_PREFIX + key)
            if not torch.equal(value, matrices[name].to(value.dtype)):
                raise CheckpointError(
                    f"{folder} was trained on another base model than {config.get(BASE)}, whose {name}.weight "
                    f"differs from the one saved here; name the right one in {BASE} of {ADAPTER_CONFIG}"
                )
        for name in layers:
            a, b = (file.get_tensor(_PREFIX + name + end) for end in _SAVED.both)
            weights[f"{name}.weight"] = fold(matrices[name], a, b, scale)
    fold.say(folder)


def _rank_and_scale(config: Mapping[str, Any], source: Path) -> tuple[int, float]:
    """The rank, and what B A is multiplied by. Raises CheckpointError where the update is not B A alone."""
    unread = [name for name in _UNREAD if config.get(name)]
    if config.get("peft_type") != "LORA" or unread or config.get("bias", "none") != "none":
        raise CheckpointError(
            f"{source} is of peft_type {config.get('peft_type')} with {', '.join(unread) or 'no'} "
            "further settings; expected plain LoRA adapters. Merge them where they were trained"
        )
    start = config.get("init_lora_weights")
    if start not in _KEEP_THE_BASE:
        raise CheckpointError(
            f"{source}: init_lora_weights is {start!r}, which changed the base model's weights before "
            "training; expected adapters that are added to the published ones. Merge them where they were trained"
        )
    rank = value_of(config, "r", int, 1, source=source)
    alpha = value_of(config, "lora_alpha", float, source=source)
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _named(config: Mapping[str, Any], key: str, names: Iterable[str], source: Path) -> list[str]:
    """The modules that peft's target_modules or exclude_modules mean: the last parts of names, or one pattern."""
    choice = config.get(key)
    if isinstance(choice, str):
        return [name for name in names if re.fullmatch(choice, name)]
    ends = tuple(f".{end}" for end in list_of({key: choice or []}, key, str, source=source))
    return [name for name in names if f".{name}".endswith(ends)]
