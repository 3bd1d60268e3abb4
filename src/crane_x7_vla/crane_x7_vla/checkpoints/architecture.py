"""Between a published config.json and the dimensions of a trunk.

OpenVLA's config.json names timm models and gives a sparse ``text_config``; what it leaves out are the defaults of
``LlamaConfig``. MiniVLA was not published in this layout; its ``text_config``, of model_type qwen2, states everything.
Trunks of other sizes add ``timm_model_kwargs``, the arguments of ``timm.create_model`` that differ from the named
model's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from crane_x7_vla.checkpoints.files import list_of, value_of
from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.models.decoder import DecoderConfig
from crane_x7_vla.models.prismatic import PrismaticConfig
from crane_x7_vla.models.vit import ViTConfig

_DINO = "vit_large_patch14_reg4_dinov2.lvd142m"
_SIGLIP = "vit_so400m_patch14_siglip_224"
_RESIZE = "resize-naive"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timm:
    """Arguments of a timm ViT, by timm's names; init_values is LayerScale's."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    patch_size: int = 14
    class_token: bool = False
    reg_tokens: int = 0
    init_values: float | None = None


_TIMM: Mapping[str, _Timm] = {
    _DINO: _Timm(
        embed_dim=1024, depth=24, num_heads=16, mlp_ratio=4.0, class_token=True, reg_tokens=4, init_values=1e-5
    ),
    _SIGLIP: _Timm(embed_dim=1152, depth=27, num_heads=16, mlp_ratio=3.7362),
}

_CHANGES = "timm_model_kwargs"
_CHANGEABLE: Mapping[str, tuple[type, float]] = {
    "embed_dim": (int, 1),
    "depth": (int, 2),
    "num_heads": (int, 1),
    "patch_size": (int, 1),
    "mlp_ratio": (float, 1),
    "init_values": (float, 0),
}
"""What may differ from the named model, and the least it may be."""

_LLAMA_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_QWEN_NEEDED = ("num_key_value_heads", *_LLAMA_DEFAULTS)
_COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_FIXED: Mapping[str, Any] = {
    "attention_bias": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "rope_scaling": None,
    "rope_type": "default",
    "use_sliding_window": False,
}
"""Settings of Llama and Qwen2 that change what is computed, with the one value that the decoder has."""


def _published(image_size: int, text_config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure",
        "use_fused_vision_backbone": True,
        "image_resize_strategy": _RESIZE,
        "image_sizes": [image_size, image_size],
        "timm_model_ids": [_DINO, _SIGLIP],
        "timm_override_act_layers": [None, None],
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "llm_max_length": 2048,
        "n_action_bins": 256,
        "text_config": {"model_type": "llama", **text_config},
        **more,
    }


_TINY_TOWERS = [
    {"embed_dim": 64, "depth": 3, "num_heads": 4, "patch_size": 8, "mlp_ratio": 4.0, "init_values": 1.0},
    {"embed_dim": 64, "depth": 3, "num_heads": 4, "patch_size": 8, "mlp_ratio": 4.0},
]

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "openvla-7b": _published(
        224, {"vocab_size": 32064, "pad_token_id": 32000}, pad_token_id=32000, pad_to_multiple_of=64
    ),
    "minivla": _published(
        224,
        {
            "model_type": "qwen2",
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "pad_token_id": 151643,
        },
        llm_backbone_id="qwen25-0_5b-extra",
        hf_llm_id="Qwen/Qwen2.5-0.5B",
        llm_max_length=32768,
        pad_token_id=151643,
        pad_to_multiple_of=64,
    ),
    "tiny": _published(
        64,
        {
            "vocab_size": 320,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "pad_token_id": 4,
        },
        pad_token_id=4,
        pad_to_multiple_of=64,
        timm_model_kwargs=_TINY_TOWERS,
    ),
    "minivla-tiny": _published(
        64,
        {
            "model_type": "qwen2",
            "vocab_size": 576,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
        llm_backbone_id="qwen25-0_5b-extra",
        hf_llm_id="Qwen/Qwen2.5-0.5B",
        pad_token_id=0,
        pad_to_multiple_of=64,
        timm_model_kwargs=_TINY_TOWERS,
    ),
}
"""config.json of the trunks that can be made from random weights."""


def architecture(name: str) -> Mapping[str, Any]:
    """The config.json of a named architecture; raises ConfigError that lists them."""
    if name not in ARCHITECTURES:
        raise ConfigError(f"unknown architecture '{name}'; expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def trunk_config(published: Mapping[str, Any], *, source: str) -> PrismaticConfig:
    """Dimensions that a config.json states. source: its path, for messages. Raises CheckpointError."""
    if published.get("model_type") != "openvla":
        raise CheckpointError(
            f"{source}: model_type is {published.get('model_type')!r}; expected 'openvla', a model in OpenVLA's layout"
        )
    resize = published.get("image_resize_strategy", _RESIZE)
    if resize != _RESIZE:
        raise CheckpointError(f"{source}: image_resize_strategy is {resize!r}; only models of {_RESIZE!r} are read")
    names = tower_names(published, source=source)
    unknown = [name for name in names if name not in _TIMM]
    if unknown:
        raise CheckpointError(f"{source}: unknown vision tower {', '.join(unknown)}; known: {', '.join(_TIMM)}")
    sizes = list_of(published, "image_sizes", int, 1, source=source)
    changes = list_of({_CHANGES: [{}] * len(names), **published}, _CHANGES, dict, source=source)
    if not len(names) == len(sizes) == len(changes):
        raise CheckpointError(
            f"{source}: timm_model_ids, image_sizes and {_CHANGES} have {len(names)}, {len(sizes)} and {len(changes)} "
            "entries; expected one for each vision tower"
        )
    timms = [_changed(_TIMM[name], change, source) for name, change in zip(names, changes, strict=True)]
    decoder = _decoder_arguments(value_of(published, "text_config", dict, source=source), f"{source}, text_config")
    try:
        towers = tuple(_tower(timm, size) for timm, size in zip(timms, sizes, strict=True))
        return PrismaticConfig(towers=towers, decoder=DecoderConfig(**decoder))
    except ValueError as error:
        raise CheckpointError(f"{source} states dimensions that do not fit together: {error}") from error


def tower_names(published: Mapping[str, Any], *, source: str) -> tuple[str, ...]:
    """timm's names of the vision towers in a config.json; raises CheckpointError."""
    return list_of(published, "timm_model_ids", str, source=source)


def _changed(timm: _Timm, changes: Mapping[str, Any], source: str) -> _Timm:
    unknown = [key for key in changes if key not in _CHANGEABLE]
    if unknown:
        raise CheckpointError(f"{source}: {_CHANGES} has {unknown[0]}; only {', '.join(_CHANGEABLE)} are read")
    source = f"{source}, {_CHANGES}"
    values = {key: value_of(changes, key, *_CHANGEABLE[key], source=source) for key in changes}
    return replace(timm, **values)


def _tower(timm: _Timm, image_size: int) -> ViTConfig:
    return ViTConfig(
        image_size=image_size,
        patch_size=timm.patch_size,
        width=timm.embed_dim,
        blocks=timm.depth - 1,
        heads=timm.num_heads,
        mlp_width=int(timm.embed_dim * timm.mlp_ratio),
        class_token=timm.class_token,
        registers=timm.reg_tokens,
        layer_scale=timm.init_values,
    )


def _decoder_arguments(text_config: Mapping[str, Any], source: str) -> dict[str, Any]:
    family = text_config.get("model_type", "llama")
    if family not in ("llama", "qwen2"):
        raise CheckpointError(f"{source}: model_type is {family!r}; expected llama or qwen2")
    if text_config.get("rope_parameters") is not None:  # transformers 5 keeps them there
        text_config = {**text_config, **value_of(text_config, "rope_parameters", dict, source=source)}
    missing = [key for key in _QWEN_NEEDED if family == "qwen2" and key not in text_config]
    if missing:
        raise CheckpointError(f"{source} of model_type qwen2 lacks {', '.join(missing)}")
    text = {**_LLAMA_DEFAULTS, **text_config}
    counts = {key: value_of(text, key, int, 1, source=source) for key in _COUNTS}
    heads = counts["num_attention_heads"]
    for key, only in {**_FIXED, "head_dim": counts["hidden_size"] // heads}.items():
        if text.get(key) not in (None, only):
            raise CheckpointError(f"{source}: {key} is {text[key]!r}; only models with {json.dumps(only)} are read")
    if text.get("num_key_value_heads") is None:
        text["num_key_value_heads"] = heads
    return {
        **counts,
        "num_key_value_heads": value_of(text, "num_key_value_heads", int, 1, source=source),
        "rms_norm_eps": value_of(text, "rms_norm_eps", float, 0, source=source),
        "rope_theta": value_of(text, "rope_theta", float, 1, source=source),
        "qkv_bias": family == "qwen2",
        "tied_embeddings": value_of(text, "tie_word_embeddings", bool, source=source),
    }
