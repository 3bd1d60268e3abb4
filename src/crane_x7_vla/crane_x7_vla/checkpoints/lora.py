"""Low-rank adapters: adding, saving, restoring and folding them. peft trains them and defines their files.

What is trained in full beside the adapters (a new action head, say) is saved as modules.safetensors in the same
checkpoint.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Conv2d, Linear, LoraModel
from torch import Tensor, nn

from crane_x7_vla.checkpoints import layouts
from crane_x7_vla.checkpoints.adapters import ADAPTER_CONFIG, ADAPTERS, MODULES_FILE, base_model_of
from crane_x7_vla.checkpoints.files import read_json
from crane_x7_vla.errors import CheckpointError, ConfigError

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ADAPTER = "default"
_FINGERPRINT = "base_fingerprint"


def add_adapters(
    model: nn.Module,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: Sequence[str],
    trained: Sequence[str],
    without: Sequence[str],
    base_model: str,
    seed: int,
) -> PeftModel:
    """Freeze ``model``, give its ``targets`` adapters and leave the ``trained`` parts trainable in full, in float32.

    targets: last parts of the names of linear and convolution layers. trained: names of modules or parameters, * stands
    for any text. without: modules that never get adapters. ``check_names`` says which names fit.
    """
    whole = dict.fromkeys([*without, *trained])
    excluded = _pattern(whole) if whole else None
    if excluded is not None and not any(re.fullmatch(excluded, name) for name, _ in model.named_modules()):
        excluded = None  # single parameters; peft warns of what excludes no module
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        exclude_modules=excluded,
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    config.base_model_name_or_path = base_model
    _train_in_full(adapted, trained)
    return adapted


def check_names(
    model: nn.Module, *, targets: Sequence[str], trained: Sequence[str], without: Sequence[str], section: str
) -> None:
    """Raise ConfigError for a name that fits nothing in ``model``, whose weights are not looked at.

    targets, trained, without: as in ``add_adapters``. section: of the settings, for messages.
    """
    excluded = re.compile(_pattern([*without, *trained]))
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    layers = [name for name in layers if not excluded.fullmatch(name)]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise ConfigError(
                f"{section}.lora_target names '{target}', which no layer is called; expected names among: {known}"
            )
    parameters = dict(model.named_parameters())
    for name in trained:
        if not any(re.fullmatch(_pattern([name]), key) for key in parameters):
            tops = ", ".join(sorted({key.partition(".")[0] for key in parameters}))
            raise ConfigError(
                f"{section}.trained_modules names '{name}', which no part of the model is called; it has {tops}"
            )


def save_adapters(model: nn.Module, directory: Path, *, base_fingerprint: str) -> None:
    """lora_adapters/ in peft's layout, and modules.safetensors with what else is trained, by the bare model's names.

    base_fingerprint: of the base model's weights; ``restore_adapters`` compares it.
    """
    assert isinstance(model, PeftModel)
    folder = directory / ADAPTERS
    folder.mkdir()
    # peft's files say that they are for inference; it decides only whether peft itself would freeze them on loading.
    config = dataclasses.replace(cast(LoraConfig, model.peft_config[_ADAPTER]), inference_mode=True)
    config.save_pretrained(str(folder))
    adapters = get_peft_model_state_dict(model, save_embedding_layers=False)
    layouts.save_tensors(folder / _ADAPTER_WEIGHTS, adapters)
    layouts.save_tensors(
        directory / MODULES_FILE, dict(_fully_trained(model)), metadata={_FINGERPRINT: base_fingerprint}
    )


def check_base(directory: Path, *, base_fingerprint: str) -> None:
    """Raise CheckpointError where the adapters of a checkpoint were trained on other weights than the base has."""
    folder, modules_file = directory / ADAPTERS, directory / MODULES_FILE
    layouts.tensor_shapes(modules_file)
    if layouts.metadata_of(modules_file).get(_FINGERPRINT) != base_fingerprint:
        raise CheckpointError(
            f"{folder} was trained on another base model than the one given; its base was {base_model_of(folder)}"
        )


def restore_adapters(model: nn.Module, directory: Path, *, trained: Sequence[str], base_fingerprint: str) -> PeftModel:
    """Put the adapters and modules of a checkpoint on its base model, trainable as they were.

    trained: as in ``add_adapters``. Raises CheckpointError naming the file and the keys that do not fit, or where the
    base model's weights are not those that the adapters were trained on.
    """
    folder, modules_file = directory / ADAPTERS, directory / MODULES_FILE
    read_json(folder / ADAPTER_CONFIG)
    check_base(directory, base_fingerprint=base_fingerprint)
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    base_model, config.base_model_name_or_path = config.base_model_name_or_path, None  # peft warns about any name here
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise CheckpointError(f"{folder} does not fit its base model: {error}") from error
    config.base_model_name_or_path = base_model
    _train_in_full(adapted, trained)
    path = folder / _ADAPTER_WEIGHTS
    adapters = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    set_peft_model_state_dict(adapted, _read_like(path, adapters))
    modules = dict(_fully_trained(adapted))
    for name, value in _read_like(modules_file, modules).items():
        modules[name].data = value
    return adapted


def _read_like(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    expected = {key: tuple(value.shape) for key, value in like.items()}
    return layouts.read_tensors(dict.fromkeys(layouts.tensor_shapes(path), path), expected, dead=None, source=path)


@dataclass(frozen=True, slots=True)
class FoldReport:
    """How much of the adapters survives storing. Errors are relative to the size of the update W' - W (Frobenius norm).

    layers: how many had adapters. update: size of the update relative to the weights. error: of all layers together.
    worst, worst_layer: of the layer that loses most.
    """

    layers: int
    update: float
    error: float
    worst: float
    worst_layer: str


def fold(model: nn.Module, *, dtype: torch.dtype | None) -> tuple[nn.Module, FoldReport]:
    """Add the adapters to the weights in float32 and store them as ``dtype`` (None: as the base has them).

    What was trained in full stays in float32: it is small, rounding would take from all that was learnt there, and in
    safetensors every weight has a type of its own.
    Storing W + BA in bfloat16 rounds to 8 bits of W, which swallows an update a thousandth of its size almost entirely;
    the report says how much was lost here. Returns the bare model; ``model`` is consumed.
    """
    assert isinstance(model, PeftModel)
    update = lost = weight = worst = 0.0
    worst_layer, layers = "", 0
    trained_in_full = dict(_fully_trained(model))
    for name, layer in model.named_modules():
        if not isinstance(layer, Linear | Conv2d):
            continue
        layers += 1
        sizes = _fold_layer(layer, dtype)
        weight, update, lost = weight + sizes.weight, update + sizes.update, lost + sizes.lost
        if sizes.update and (sizes.lost / sizes.update) ** 0.5 > worst:
            worst, worst_layer = (sizes.lost / sizes.update) ** 0.5, name.removeprefix(_PREFIX)
    bare = cast(LoraModel, model.base_model).unload()
    report = FoldReport(
        layers=layers,
        update=(update / weight) ** 0.5 if weight else 0.0,
        error=(lost / update) ** 0.5 if update else 0.0,
        worst=worst,
        worst_layer=worst_layer,
    )
    if dtype is not None:
        for name, parameter in bare.named_parameters():
            if name not in trained_in_full:
                parameter.data = parameter.data.to(dtype)
    return bare, report


def folded(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the bare model with the adapters added in float32 and stored as the model has them, on the CPU; the
    model stays as it is. In training that is half precision, whatever the base's files have, see ``keep_as_computed``.
    """
    assert isinstance(model, PeftModel)
    layers = {
        name.removeprefix(_PREFIX): layer for name, layer in model.named_modules() if isinstance(layer, Linear | Conv2d)
    }
    weights: dict[str, Tensor] = {}
    for key, value in model.base_model.get_submodule("model").state_dict().items():
        layer, adapted, rest = key.partition(".base_layer.")
        if adapted and rest == "weight":
            delta = layers[layer].get_delta_weight(_ADAPTER).detach().float()
            weights[f"{layer}.weight"] = (value.float() + delta).to(value.dtype).cpu()
        elif ".lora_" not in key:
            weights[f"{layer}.{rest}" if adapted else key] = value.cpu()
    return weights


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Squared Frobenius norms of a layer's weight, its update, and what storing loses of the update."""

    weight: float
    update: float
    lost: float


def _fold_layer(layer: Linear | Conv2d, dtype: torch.dtype | None) -> _Sizes:
    base = cast(nn.Linear, layer.get_base_layer())
    with torch.no_grad():
        before = base.weight.data.float()
        delta = layer.get_delta_weight(_ADAPTER).float()
        after = (before + delta).to(dtype or base.weight.dtype)
        base.weight.data = after
        lost = after.float() - before - delta
        return _Sizes(float(before.square().sum()), float(delta.square().sum()), float(lost.square().sum()))


def _fully_trained(model: PeftModel) -> Iterable[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            yield _bare_name(name), parameter


def _train_in_full(model: PeftModel, names: Sequence[str]) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_" not in name and re.fullmatch(_pattern(names), _bare_name(name)):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def _bare_name(name: str) -> str:
    """Of a parameter in the model without adapters."""
    return name.removeprefix(_PREFIX).replace(".base_layer.", ".")


def _pattern(names: Iterable[str]) -> str:
    """Regular expression of the modules named and of all inside them; * in a name stands for any text."""
    choices = "|".join(re.escape(name).replace(r"\*", ".*") for name in names)
    return rf"({choices})(\..*)?"
