"""Published layouts are read strictly: the dead weights are ignored, and nothing else."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, Qwen2Config

from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.checkpoints import layouts
from crane_x7_vla.checkpoints.architecture import ARCHITECTURES, architecture, trunk_config
from crane_x7_vla.checkpoints.files import read_json
from crane_x7_vla.checkpoints.tokenizer import small_tokenizer
from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.models import openvla_oft
from crane_x7_vla.models.prismatic import PrismaticModel

torch.set_num_threads(1)
GOLDEN = np.load(Path(openvla_oft.__file__).parent / "testdata" / "openvla_oft.npz")
META = json.loads(str(GOLDEN["meta"]))


def published_config() -> dict[str, object]:
    """config.json of the golden model: published fields, and what makes its towers small."""
    towers = [dict(zip(("embed_dim", "depth", "num_heads"), META[name], strict=True)) for name in ("dino", "siglip")]
    return {
        **ARCHITECTURES["openvla-7b"],
        "image_sizes": [META["image_size"]] * 2,
        "text_config": META["text_config"],
        "timm_model_kwargs": towers,
    }


@pytest.fixture
def published() -> dict[str, Tensor]:
    """Every weight of the published layout, dead ones too; the names are the reference's, not ours."""
    keys: dict[str, list[int]] = json.loads(str(GOLDEN["plain_keys"]))
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) * 0.02 for key, shape in keys.items()}


def load(directory: Path) -> PrismaticModel:
    config = trunk_config(read_json(directory / "config.json"), source=str(directory / "config.json"))
    model = PrismaticModel(config)
    tensors = layouts.read_tensors(
        layouts.weight_files(directory), layouts.shapes_of(model), dead=layouts.dead_keys(config), source=directory
    )
    model.load_state_dict(tensors, strict=True)
    return model


def write_shards(directory: Path, tensors: dict[str, Tensor], count: int) -> None:
    """As transformers' save_pretrained does it."""
    names = [f"model-{k + 1:05d}-of-{count:05d}.safetensors" for k in range(count)]
    table = {key: names[index % count] for index, key in enumerate(tensors)}
    for name in names:
        save_file({key: value for key, value in tensors.items() if table[key] == name}, directory / name)
    total = sum(value.nbytes for value in tensors.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": table})
    )
    (directory / "config.json").write_text(json.dumps(published_config()))


def test_a_sharded_published_model_loads_with_its_dead_weights_left_aside(
    tmp_path: Path, published: dict[str, Tensor]
) -> None:
    write_shards(tmp_path, published, 3)
    state = load(tmp_path).state_dict()
    assert all(torch.equal(value, published[key]) for key, value in state.items())
    dead = set(published) - set(state)
    assert {key.split(".")[1] + "." + key.split(".")[2] for key in dead} == {
        "featurizer.blocks",
        "featurizer.norm",
        "fused_featurizer.blocks",
        "fused_featurizer.norm",
        "fused_featurizer.attn_pool",
    }


def test_a_model_written_in_shards_is_read_back(tmp_path: Path, published: dict[str, Tensor]) -> None:
    config = published_config()
    assets = layouts.Assets(config, small_tokenizer(), layouts.default_normalizations(2))
    layouts.write_model(tmp_path, tensors=published, assets=assets, shard_bytes=5_000_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    read = {key: load_file(path)[key] for key, path in layouts.weight_files(tmp_path).items()}
    assert all(torch.equal(read[key], value) for key, value in published.items())
    assert layouts.read_assets(tmp_path).normalizations == assets.normalizations
    assert layouts.read_assets(tmp_path).tokenizer.encode("red").ids == assets.tokenizer.encode("red").ids


def test_what_is_missing_unexpected_or_of_another_shape_is_listed_in_one_error(
    tmp_path: Path, published: dict[str, Tensor]
) -> None:
    del published["projector.fc2.weight"]
    published["projector.fc9.weight"] = torch.zeros(1)
    published["projector.fc3.bias"] = torch.zeros(7)
    write_shards(tmp_path, published, 1)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    for part in (
        "1 missing: projector.fc2.weight",
        "1 unexpected: projector.fc9.weight",
        "1 of another shape: projector.fc3.bias [7] instead of [64]",
    ):
        assert part in str(caught.value)


def test_a_file_cut_off_is_named(tmp_path: Path, published: dict[str, Tensor]) -> None:
    write_shards(tmp_path, published, 2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{shard.name} is damaged or cut off"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "config.json"])
def test_a_file_that_git_did_not_fetch_is_called_a_pointer(
    tmp_path: Path, published: dict[str, Tensor], name: str
) -> None:
    write_shards(tmp_path, published, 2)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n")
    with pytest.raises(CheckpointError, match=rf"{name} is git-lfs's pointer .* fetch it with: git lfs pull"):
        load(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path, published: dict[str, Tensor]) -> None:
    write_shards(tmp_path, published, 2)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00001-of-00002.safetensors"):
        load(tmp_path)


def test_a_shard_holds_nothing_that_the_index_does_not_name(tmp_path: Path, published: dict[str, Tensor]) -> None:
    write_shards(tmp_path, published, 2)
    index = tmp_path / "model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"]
    del table["projector.fc2.bias"]
    index.write_text(json.dumps({"weight_map": table}))
    with pytest.raises(CheckpointError, match=r"index\.json leaves out 1 that its files hold: projector\.fc2\.bias"):
        load(tmp_path)


def test_of_a_weight_in_two_shards_the_one_that_the_index_names_is_read(
    tmp_path: Path, published: dict[str, Tensor]
) -> None:
    write_shards(tmp_path, published, 2)
    key, last = "projector.fc1.bias", tmp_path / "model-00002-of-00002.safetensors"
    assert key not in load_file(last)
    save_file({**load_file(last), key: published[key] + 1}, last)
    assert torch.equal(load(tmp_path).state_dict()[key], published[key])


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/model.safetensors", "part/x.safetensors", 3])
def test_shards_lie_beside_their_index(tmp_path: Path, name: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match=rf"index.json names {name!r}, which is not a file beside it"):
        layouts.weight_files(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"model": {"type": "BPE"}}',
        '{"model": 3}',
        '{"model": {"type": "BPE", "vocab": {}}}',
        '{"model": {"type": "Other", "vocab": {}, "merges": []}}',
    ],
)
def test_json_that_is_no_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    assets = layouts.Assets(architecture("tiny"), small_tokenizer(), layouts.default_normalizations(2))
    layouts.write_model(tmp_path, tensors={"x": torch.zeros(1)}, assets=assets)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer.json is not a tokenizer"):
        layouts.read_assets(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_or_cut_off_file_beside_the_weights_is_named(tmp_path: Path, name: str) -> None:
    config = architecture("tiny")
    assets = layouts.Assets(config, small_tokenizer(), layouts.default_normalizations(2))
    layouts.write_model(tmp_path, tensors={"x": torch.zeros(1)}, assets=assets)
    whole = (tmp_path / name).read_text()
    (tmp_path / name).write_text(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=rf"{name} is not JSON"):
        layouts.read_assets(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks {name}"):
        layouts.read_assets(tmp_path)


def test_a_full_disk_is_an_os_error_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise layouts.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(layouts, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        layouts.save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1)})
    assert caught.value.errno == errno.ENOSPC


def test_weights_have_the_permissions_of_other_files(tmp_path: Path) -> None:
    layouts.save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_fingerprint_depends_on_the_weights_and_not_on_their_order() -> None:
    tensors = {"a": torch.ones(3, 3), "b": torch.zeros(2)}
    same = layouts.fingerprint(dict(reversed(tensors.items())))
    assert layouts.fingerprint(tensors) == same
    assert layouts.fingerprint({**tensors, "a": torch.ones(3, 3) + 1e-3}) != same


def test_openvla_7b_has_the_published_number_of_parameters() -> None:
    """7,541,237,184 in the published safetensors index; those of the blocks that no one reads are not built."""
    config = trunk_config(architecture("openvla-7b"), source="openvla-7b")
    with torch.device("meta"):
        model = PrismaticModel(config)
    dino, siglip = config.towers

    def block(width: int, mlp: int, scales: int) -> int:
        return 4 * width + 4 * width * width + 4 * width + 2 * width * mlp + mlp + width + scales * width

    pool = siglip.width + 4 * siglip.width**2 + 6 * siglip.width + 2 * siglip.width * siglip.mlp_width
    pool += siglip.mlp_width + siglip.width
    unused = block(dino.width, dino.mlp_width, 2) + 2 * dino.width
    unused += block(siglip.width, siglip.mlp_width, 0) + 2 * siglip.width + pool
    assert sum(parameter.numel() for parameter in model.parameters()) + unused == 7_541_237_184


def test_minivla_has_the_published_parameters_of_its_parts() -> None:
    """Qwen2.5-0.5B has 494,032,768 (its safetensors); the towers are those of openvla-7b."""
    config = trunk_config(architecture("minivla"), source="minivla")
    with torch.device("meta"):
        model = PrismaticModel(config)
    assert sum(parameter.numel() for parameter in model.language_model.parameters()) == 494_032_768
    projector = 2176 * 8704 + 8704 + 8704 * 896 + 896 + 896 * 896 + 896
    assert sum(parameter.numel() for parameter in model.projector.parameters()) == projector
    assert config.towers == trunk_config(architecture("openvla-7b"), source="openvla-7b").towers


def test_a_qwen2_config_must_say_its_dimensions() -> None:
    sparse = {**architecture("minivla"), "text_config": {"model_type": "qwen2", "hidden_size": 896}}
    with pytest.raises(CheckpointError, match="text_config of model_type qwen2 lacks num_key_value_heads, vocab_size"):
        trunk_config(sparse, source="config.json")
    phi = {**architecture("minivla"), "text_config": {"model_type": "phi"}}
    with pytest.raises(CheckpointError, match=r"text_config: model_type is 'phi'; expected llama or qwen2"):
        trunk_config(phi, source="config.json")


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])
def test_a_text_config_that_states_everything_is_read_as_transformers_5_writes_it(
    kind: type[LlamaConfig | Qwen2Config],
) -> None:
    text = kind(rope_parameters={"rope_type": "default", "rope_theta": 5e5}).to_dict()
    decoder = trunk_config({**architecture("openvla-7b"), "text_config": text}, source="config.json").decoder
    assert decoder.rope_theta == 5e5
    assert (decoder.qkv_bias, decoder.head_dim) == (kind is Qwen2Config, 128)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling is {'type': 'linear', 'factor': 2.0}; only",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type is 'llama3'; only"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]; expected a table"),
        ({"attention_bias": True}, "attention_bias is True; only models with false are read"),
        ({"mlp_bias": True}, "mlp_bias is True; only"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only"),
        ({"head_dim": 64}, "head_dim is 64; only models with 128 are read"),
        ({"use_sliding_window": True}, "use_sliding_window is True; only"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; expected 1 or more"),
        ({"num_hidden_layers": -3}, "num_hidden_layers is -3; expected 1 or more"),
        ({"hidden_size": True}, "hidden_size is True; expected a whole number"),
        ({"vocab_size": "32064"}, "vocab_size is '32064'; expected a whole number"),
        ({"rope_theta": None}, "rope_theta is None; expected a number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; expected true or false"),
    ],
)
def test_a_text_config_that_the_decoder_would_compute_otherwise_is_refused_by_its_key(
    setting: dict[str, object], said: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json, text_config: {said}"):
        trunk_config({**architecture("openvla-7b"), "text_config": setting}, source="config.json")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"text_config": [1]}, r": text_config is \[1\]; expected a table"),
        ({"timm_model_ids": None}, ": timm_model_ids is None; expected a list"),
        ({"timm_model_ids": [["a"], 2]}, r": timm_model_ids\[0\] is \['a'\]; expected text"),
        ({"image_sizes": [0, 0]}, r": image_sizes\[0\] is 0; expected 1 or more"),
        ({"image_sizes": [224]}, "have 2, 1 and 2 entries; expected one for each vision tower"),
        ({"timm_model_kwargs": [{}, {"num_heads": 0}]}, ", timm_model_kwargs: num_heads is 0; expected 1 or more"),
        ({"timm_model_kwargs": [{}, {"heads": 3}]}, ": timm_model_kwargs has heads; only embed_dim"),
        ({"timm_model_kwargs": 3}, ": timm_model_kwargs is 3; expected a list"),
    ],
)
def test_a_damaged_config_is_named_with_its_key(setting: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json.*{said}"):
        trunk_config({**architecture("openvla-7b"), **setting}, source="config.json")


def test_a_config_of_something_else_is_refused() -> None:
    with pytest.raises(CheckpointError, match="model_type is 'llama'"):
        trunk_config({"model_type": "llama"}, source="config.json")
    with pytest.raises(CheckpointError, match="image_resize_strategy is 'letterbox'; only models of 'resize-naive'"):
        trunk_config({**architecture("tiny"), "image_resize_strategy": "letterbox"}, source="config.json")
    with pytest.raises(CheckpointError, match="unknown vision tower resnet50"):
        trunk_config({**architecture("tiny"), "timm_model_ids": ["resnet50", "x"]}, source="config.json")
    with pytest.raises(ConfigError, match="expected one of openvla-7b, minivla, tiny"):
        architecture("huge")


def test_openvla_oft_has_the_published_sizes_of_its_parts() -> None:
    """FiLM in the 23 and 26 blocks that are read; head and projector of openvla-oft 213c5ff for 8 joints."""
    settings = OpenVLAOFTConfig().openvla_oft
    head = openvla_oft.OFTHeadConfig(
        action_dim=8,
        action_horizon=settings.action_horizon,
        hidden_dim=settings.action_head.hidden_dim,
        num_blocks=settings.action_head.num_blocks,
        state_dim=8,
    )
    config = trunk_config(architecture("openvla-7b"), source="openvla-7b")
    with torch.device("meta"):
        plain, film = (openvla_oft.OpenVLAOFT(trunk, head) for trunk in (config, config.with_film()))
    sizes = {key: value.numel() for key, value in film.named_parameters()}
    assert sum(sizes[key] for key in layouts.component_keys("proprio_projector", sizes).values()) == 16_818_176
    width, hidden = 8 * 4096, 4096
    residual_block = 2 * hidden + hidden * hidden + hidden
    head_size = 2 * width + width * hidden + hidden + 2 * residual_block + 2 * hidden + hidden * 8 + 8
    assert sum(sizes[key] for key in layouts.component_keys("action_head", sizes).values()) == head_size
    of_film = 2 * (4096 + 1) * (23 * 1024 + 26 * 1152)
    assert sum(sizes[key] for key in layouts.component_keys(layouts.FILM, sizes).values()) == of_film
    assert sum(sizes.values()) == sum(value.numel() for value in plain.parameters()) + of_film
