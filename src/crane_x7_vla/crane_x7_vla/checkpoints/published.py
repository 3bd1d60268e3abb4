"""Base models in every layout in which they are published, each found out from the files that lie there.

A model directory of Hugging Face; a Prismatic run (``prismatic_native``); a folder of LoRA adapters, which names its
own base model; a run of OpenVLA-OFT, merged or with ``lora_adapter/``, with FiLM or without (``component_files``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from crane_x7_vla.checkpoints import layouts
from crane_x7_vla.checkpoints.adapters import ADAPTER_CONFIG, BASE, base_model_of, is_adapter_folder
from crane_x7_vla.checkpoints.base_model import hub_file, resolve_model
from crane_x7_vla.checkpoints.component_files import film_backbone, find_component, read_film_backbone
from crane_x7_vla.checkpoints.files import read_json
from crane_x7_vla.checkpoints.layouts import FILM, Assets, is_film
from crane_x7_vla.checkpoints.lowrank import fold_adapters
from crane_x7_vla.checkpoints.prismatic_native import is_native, native_published, read_native, read_native_dead
from crane_x7_vla.checkpoints.tokenizer import add_action_tokens, read_tokenizer
from crane_x7_vla.data.statistics import FILE_NAME as STATISTICS_FILE
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.models.prismatic import PrismaticConfig

_OFT_ADAPTERS = "lora_adapter"
_VISION = r"vision_backbone\..*"
_TOKENIZERS = {"llama2-7b-pure": "openvla/openvla-7b"}
"""Where the tokenizer of a run's language model can be had without a licence; else at the model's own repository."""


def read_assets(directory: Path) -> Assets:
    """What a base model has beside weights; raises CheckpointError naming the file that is missing or damaged."""
    adapters = _adapters(directory)
    if adapters is not None:
        return read_assets(_base_of(adapters))
    if not is_native(directory):
        return layouts.read_assets(directory)
    published = native_published(directory)
    towers = len(published["timm_model_ids"])
    return Assets(published, _native_tokenizer(directory, published), layouts.default_normalizations(towers))


def read_trunk(directory: Path, config: PrismaticConfig, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Exactly the expected weights of a trunk, strictly; raises one CheckpointError that lists what does not fit.

    expected: {key: shape}. Weights of FiLM among them are left out of what is returned where the base has no FiLM; a
    base that has it where none is expected is an error.
    """
    film = film_backbone(directory)
    trained = film or find_component(directory, FILM)
    if trained and not any(is_film(key) for key in expected):
        raise CheckpointError(
            f"{trained} is of a model with FiLM, which this one has not; use the backend openvla-oft with "
            "film.enabled: true"
        )
    if film is None:
        return _read(directory, {key: shape for key, shape in expected.items() if not is_film(key)}, config)
    vision = read_film_backbone(film)
    wanted = {key: shape for key, shape in expected.items() if key.startswith("vision_backbone.")}
    shapes = {key: tuple(value.shape) for key, value in vision.items()}
    layouts.require_fit(shapes, wanted, dead=layouts.dead_keys(config), source=film)
    rest = {key: shape for key, shape in expected.items() if key not in wanted}
    return {**_read(directory, rest, config, dead=_VISION), **{key: vision[key] for key in wanted}}


def read_dead(directory: Path, config: PrismaticConfig) -> dict[str, Tensor]:
    """The weights of a base that no one reads, by their names; OpenVLA's own code wants them in a model's files."""
    adapters, dead = _adapters(directory), layouts.dead_keys(config)
    if adapters is not None:
        return read_dead(_base_of(adapters), config)
    if is_native(directory):
        return read_native_dead(directory, dead)
    files = {key: path for key, path in layouts.weight_files(directory).items() if re.fullmatch(dead, key)}
    return layouts.pick_tensors(files)


def base_statistics(directory: Path) -> dict[str, int]:
    """{data set: numbers of an action} of the statistics that a base model brings along."""
    beside = directory / STATISTICS_FILE
    table = read_json(beside) if beside.is_file() else read_assets(directory).published.get("norm_stats")
    sizes: dict[str, int] = {}
    for name, entry in table.items() if isinstance(table, Mapping) else ():
        action = entry.get("action") if isinstance(entry, Mapping) else None
        if isinstance(action, Mapping) and isinstance(action.get("mean"), list):
            sizes[name] = len(action["mean"])
    return sizes


def _read(
    directory: Path, expected: Mapping[str, tuple[int, ...]], config: PrismaticConfig, *, dead: str | None = None
) -> dict[str, Tensor]:
    dead = dead or layouts.dead_keys(config)
    adapters = _adapters(directory)
    if adapters is not None:
        weights = _read(_base_of(adapters), expected, config, dead=dead)
        fold_adapters(weights, adapters, dead=dead)
        return weights
    if is_native(directory):
        return read_native(directory, expected, dead=dead)
    return layouts.read_tensors(layouts.weight_files(directory), expected, dead=dead, source=directory)


def _adapters(directory: Path) -> Path | None:
    """The folder of adapters that ``directory`` is, or has in place of whole weights."""
    if is_adapter_folder(directory):
        return directory
    whole = any((directory / name).is_file() for name in (layouts.INDEX_FILE, layouts.WEIGHTS_FILE))
    inner = directory / _OFT_ADAPTERS
    return inner if not whole and is_adapter_folder(inner) else None


def _base_of(adapters: Path) -> Path:
    """The directory of the base model; raises CheckpointError where its own bases lead back to the adapters."""
    base = _named_base(adapters)
    passed, below = {adapters.resolve()}, _adapters(base)
    while below is not None:
        if below.resolve() in passed:
            raise CheckpointError(f"{adapters / ADAPTER_CONFIG}: {BASE} leads back to {below}; name a whole model")
        passed.add(below.resolve())
        below = _adapters(_named_base(below))
    return base


def _named_base(adapters: Path) -> Path:
    path, name = adapters / ADAPTER_CONFIG, base_model_of(adapters)
    if name is None:
        raise CheckpointError(f"{path} names no base model; write it in {BASE}")
    try:
        return resolve_model(name)
    except CheckpointError as error:
        raise CheckpointError(f"{path} names in {BASE} what is not there: {error}") from error


def _native_tokenizer(directory: Path, published: Mapping[str, object]) -> Tokenizer:
    """Runs bring no tokenizer: the one laid beside them, else that of their language model from the hub."""
    path = directory / layouts.TOKENIZER_FILE
    name = str(published["llm_backbone_id"])
    if not path.is_file():
        path = hub_file(_TOKENIZERS.get(name, str(published["hf_llm_id"])), layouts.TOKENIZER_FILE, beside=directory)
    tokenizer = read_tokenizer(path)
    if name.endswith("-extra"):
        add_action_tokens(tokenizer)
    return tokenizer
