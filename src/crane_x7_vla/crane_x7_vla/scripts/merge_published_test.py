"""A fine-tuned OpenVLA, merged, is a directory as OpenVLA's own code publishes one."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from crane_x7_vla.backends.openvla.backend import OpenVLABackend
from crane_x7_vla.backends.openvla.backend_test import published_statistics, tiny
from crane_x7_vla.checkpoints import layouts
from crane_x7_vla.checkpoints.architecture import architecture
from crane_x7_vla.checkpoints.published_config_test import PREPROCESSOR
from crane_x7_vla.checkpoints.tokenizer import small_tokenizer
from crane_x7_vla.config.yaml import dump_config
from crane_x7_vla.data.statistics import to_json
from crane_x7_vla.models.golden_test import DEAD, OPENVLA, OPENVLA_META, golden_weight
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.scripts.merge_lora import merge

torch.set_num_threads(1)
KEYS: dict[str, list[int]] = json.loads(str(OPENVLA["keys"]))
SHARD_BYTES = 6_000_000


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The golden model in shards, dead weights and all, with the published numbers for its images."""
    directory = tmp_path / "base"
    directory.mkdir()
    towers = [
        dict(zip(("embed_dim", "depth", "num_heads"), OPENVLA_META[name], strict=True)) for name in ("dino", "siglip")
    ]
    published = {
        **architecture("openvla-7b"),
        "image_sizes": [OPENVLA_META["image_size"]] * 2,
        "text_config": OPENVLA_META["text_config"],
        "timm_model_kwargs": towers,
    }
    layouts.write_model(
        directory,
        tensors={key: golden_weight(key, tuple(shape)) for key, shape in KEYS.items()},
        assets=layouts.Assets(published, small_tokenizer(), layouts.default_normalizations(2)),
        shard_bytes=SHARD_BYTES,
    )
    path = directory / "preprocessor_config.json"
    rounded = {"tvf_normalize_params": json.loads(PREPROCESSOR)["tvf_normalize_params"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | rounded))
    return directory


@pytest.fixture
def checkpoint(base: Path, tmp_path: Path) -> Path:
    """checkpoint-1 of adapters on ``base`` that have learnt something."""
    config = tiny(
        model_id=str(base),
        architecture="openvla-7b",
        action_tokenization_bins=256,
        empty_token_id=29871,
        use_lora=True,
    )
    statistics = published_statistics()
    backend = OpenVLABackend(config, robot=CRANE_X7, statistics=statistics)
    model = backend.build()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.05, generator=generator)
    directory = tmp_path / "checkpoint-1"
    directory.mkdir()
    backend.save(model, directory)
    (directory / "config.yaml").write_text(dump_config(config))
    (directory / "dataset_statistics.json").write_text(to_json(statistics))
    return directory


def weights(directory: Path) -> dict[str, Tensor]:
    """All that lies in a directory's safetensors, each file holding what the index says and nothing else."""
    table: dict[str, str] = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    found = {path.name: load_file(path) for path in directory.glob("*.safetensors")}
    assert {key: name for name, tensors in found.items() for key in tensors} == table
    return {key: value for tensors in found.values() for key, value in tensors.items()}


def test_a_merged_openvla_has_the_published_keys_shapes_and_files(
    base: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "write_model", functools.partial(layouts.write_model, shard_bytes=SHARD_BYTES))
    merged = tmp_path / "merged"
    merge(checkpoint, merged)
    before, after = weights(base), weights(merged)
    assert {key: list(value.shape) for key, value in after.items()} == KEYS
    shards = sorted(path.name for path in merged.glob("*.safetensors"))
    assert len(shards) > 1
    assert shards == [f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors" for k in range(len(shards))]
    assert all((merged / name).stat().st_size < 1.5 * SHARD_BYTES for name in shards)
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert {
        "language_model.lm_head.weight",
        "projector.fc2.weight",
        "vision_backbone.featurizer.patch_embed.proj.weight",
    } < changed
    assert not any(re.fullmatch(DEAD, key) for key in changed)
    original, config = (json.loads((folder / "config.json").read_text()) for folder in (base, merged))
    assert config.keys() - original.keys() == {"norm_stats"}
    assert {key: config[key] for key in original} == original
    original, preprocessor = (
        json.loads((folder / "preprocessor_config.json").read_text()) for folder in (base, merged)
    )
    assert preprocessor["tvf_normalize_params"] == original["tvf_normalize_params"]
    assert preprocessor.keys() == original.keys() == json.loads(PREPROCESSOR).keys() - {"auto_map"}
