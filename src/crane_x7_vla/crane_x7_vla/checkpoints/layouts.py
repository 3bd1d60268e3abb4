"""Model directories in the published Hugging Face layout, read strictly.

config.json, model.safetensors or model-0000K-of-0000N.safetensors with an index, tokenizer.json and
preprocessor_config.json; parts that are learnt anew for a robot lie beside them as NAME.safetensors with the key names
of the published component files. A weight that fails to load is an error that names it, never a random one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from crane_x7_vla.checkpoints.architecture import tower_names
from crane_x7_vla.checkpoints.files import read_json, require_file
from crane_x7_vla.checkpoints.preprocessor import read_normalizations, write_preprocessor
from crane_x7_vla.checkpoints.tokenizer import read_tokenizer
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.models.prismatic import PrismaticConfig
from crane_x7_vla.transforms.image import HALF, IMAGENET, ChannelNormalization

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
SHARD_BYTES = 4_900_000_000
FILM = "film"
"""Component: the layers by which language modulates the blocks of both towers; they lie among the trunk's."""
_VISION = "vision_backbone."
_FILM_KEY = re.compile(r"vision_backbone\.\w+\.blocks\.\d+\.(scale|shift)\.(weight|bias)")
_NAMED = 8
_FINGERPRINT_VALUES = 64


@dataclass(frozen=True, slots=True)
class Assets:
    """What a model directory holds beside weights. normalizations: one per tower. image_size: pixels."""

    published: Mapping[str, Any]
    tokenizer: Tokenizer
    normalizations: tuple[ChannelNormalization, ...]


def read_assets(directory: Path) -> Assets:
    """config.json, tokenizer and image normalisation; raises CheckpointError naming the file."""
    path = directory / CONFIG_FILE
    published = read_json(path)
    towers = tower_names(published, source=str(path))
    return Assets(published, read_tokenizer(directory / TOKENIZER_FILE), read_normalizations(directory, len(towers)))


def default_normalizations(towers: int) -> tuple[ChannelNormalization, ...]:
    """For models made from random weights: ImageNet's for DINOv2, one half for SigLIP."""
    return (IMAGENET, HALF)[:towers]


def weight_files(directory: Path) -> dict[str, Path]:
    """{key: safetensors file} of a model directory, by its index or its single file. Raises CheckpointError."""
    index = directory / INDEX_FILE
    if index.is_file():
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict):
            raise CheckpointError(f"{index} has no weight_map; copy the model again")
        elsewhere = [name for name in table.values() if not isinstance(name, str) or Path(name).name != name]
        if elsewhere:
            raise CheckpointError(
                f"{index} names {elsewhere[0]!r}, which is not a file beside it; copy the model again"
            )
        files = {key: directory / name for key, name in table.items()}
        missing = sorted({path.name for path in files.values() if not path.is_file()})
        if missing:
            raise CheckpointError(f"{directory} lacks {', '.join(missing)}, which {INDEX_FILE} names; copy it again")
        return files
    single = directory / WEIGHTS_FILE
    if not single.is_file():
        raise CheckpointError(f"{directory} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}; is it a model directory?")
    return dict.fromkeys(tensor_shapes(single), single)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """{key: shape} of a safetensors file; raises CheckpointError where it is missing or damaged."""
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut off ({error}); copy it again") from error


def read_tensors(
    files: Mapping[str, Path], expected: Mapping[str, tuple[int, ...]], *, dead: str | None, source: Path
) -> dict[str, Tensor]:
    """Exactly the expected tensors, strictly.

    files: {key: file}; of a key that lies in several, the one named here is read. dead: pattern of the keys that may
    lie there unused; they are the only ones ignored. Raises one CheckpointError that lists what is missing, unexpected
    or of another shape.
    """
    held = {path: tensor_shapes(path) for path in sorted(set(files.values()))}
    unnamed = {key for shapes in held.values() for key in shapes if key not in files and not _is_dead(key, dead)}
    if unnamed:
        raise CheckpointError(
            f"{source}: {INDEX_FILE} leaves out {_listing('that its files hold', unnamed)}; copy it again"
        )
    shapes = {key: held[path][key] for key, path in files.items() if key in held[path]}
    require_fit(shapes, expected, dead=dead, source=source)
    return pick_tensors({key: path for key, path in files.items() if key in expected})


def pick_tensors(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Those of the keys in ``files``, {key: safetensors file}, which ``tensor_shapes`` has found to be whole."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(set(files.values())):
        with safe_open(path, framework="pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys() if files.get(key) == path}  # noqa: SIM118
    return tensors


def require_fit(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, dead: str | None, source: Path
) -> None:
    """Raise one CheckpointError that lists what ``shapes`` lacks of ``expected``, has beyond it or has otherwise.

    dead: pattern of the keys that may lie there unused; they are the only ones ignored.
    """
    unexpected = {key for key in shapes if key not in expected and not _is_dead(key, dead)}
    missing = {key for key in expected if key not in shapes}
    misshapen = {key for key in expected if key in shapes and shapes[key] != expected[key]}
    parts = (
        _listing("missing", missing),
        _listing("unexpected", unexpected),
        _listing(
            "of another shape", {f"{key} {list(shapes[key])} instead of {list(expected[key])}" for key in misshapen}
        ),
    )
    if any(parts):
        raise CheckpointError(f"{source} does not fit this model: " + "; ".join(part for part in parts if part))


def _is_dead(key: str, dead: str | None) -> bool:
    return dead is not None and re.fullmatch(dead, key) is not None


def _listing(what: str, names: Collection[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(sorted(names)[:_NAMED])
    return f"{len(names)} {what}: {shown}" + (", ..." if len(names) > _NAMED else "")


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """{key: shape} of a module's state."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def dead_keys(config: PrismaticConfig) -> str:
    """Pattern of the published trunk's unused weights: each tower's last block, final norm and pooling."""
    names = ("featurizer", "fused_featurizer")
    towers = [
        rf"{name}\.(blocks\.{tower.blocks}|norm|attn_pool)\..*"
        for name, tower in zip(names, config.towers, strict=False)
    ]
    return rf"vision_backbone\.({'|'.join(towers)})"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the usual permissions (the library makes files that only the owner may read).

    Raises OSError where the disk is full or not writable, like any other file.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    contiguous = {key: value.detach().contiguous() for key, value in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    path.chmod(mode)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest that tells base models apart: of the first values of every weight, whatever the files and shards."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].flatten()[:_FINGERPRINT_VALUES].float().numpy().tobytes())
    return digest.hexdigest()


def metadata_of(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file, which ``tensor_shapes`` has found to be whole."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def write_tensors(directory: Path, tensors: Mapping[str, Tensor], *, shard_bytes: int = SHARD_BYTES) -> None:
    """model.safetensors, or shards and an index where the weights are larger than ``shard_bytes``."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for key, value in tensors.items():
        if shards[-1] and filled + value.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][key] = value
        filled += value.nbytes
    if len(shards) == 1:
        save_tensors(directory / WEIGHTS_FILE, shards[0])
        return
    table: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_tensors(directory / name, shard)
        table |= dict.fromkeys(shard, name)
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": table}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_model(
    directory: Path,
    *,
    tensors: Mapping[str, Tensor],
    assets: Assets,
    components: Iterable[str] = (),
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """A whole model directory in the published layout.

    tensors: state of the model by its names. components: names of the parts that get a file of their own, such as
    action_head; the others must be the trunk's published names.
    """
    trunk = dict(tensors)
    for name in components:
        part = {own: trunk.pop(key) for own, key in component_keys(name, tensors).items()}
        save_tensors(component_file(directory, name), part)
    write_tensors(directory, trunk, shard_bytes=shard_bytes)
    dtype = str(next(iter(trunk.values())).dtype).removeprefix("torch.")
    (directory / CONFIG_FILE).write_text(
        json.dumps({**assets.published, "torch_dtype": dtype}, indent=2) + "\n", encoding="utf-8"
    )
    assets.tokenizer.save(str(directory / TOKENIZER_FILE))
    write_preprocessor(directory, assets.normalizations, assets.published["image_sizes"][0])


def component_file(directory: Path, name: str) -> Path:
    """Where a part learnt anew for a robot lies in a model directory."""
    return directory / f"{name}.safetensors"


def component_keys(name: str, keys: Iterable[str]) -> dict[str, str]:
    """{name in the file of a component: name in the model}, of those of the model's ``keys`` that belong to it."""
    if name == FILM:
        return {key.removeprefix(_VISION): key for key in keys if is_film(key)}
    return {key.removeprefix(f"{name}."): key for key in keys if key.startswith(f"{name}.")}


def component_modules(name: str) -> tuple[str, ...]:
    """The modules of a component; * stands for any text."""
    return (f"{_VISION}*.scale", f"{_VISION}*.shift") if name == FILM else (name,)


def is_film(key: str) -> bool:
    """Whether a weight is FiLM's."""
    return _FILM_KEY.fullmatch(key) is not None
