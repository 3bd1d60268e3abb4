"""Every published layout of a base model loads into the same trunk; the names are the references', never ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from crane_x7_vla.checkpoints import layouts, prismatic_native
from crane_x7_vla.checkpoints.architecture import ARCHITECTURES, architecture, trunk_config
from crane_x7_vla.checkpoints.published import base_statistics, read_assets, read_dead, read_trunk
from crane_x7_vla.checkpoints.tokenizer import small_tokenizer
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.models import openvla_oft
from crane_x7_vla.models.prismatic import PrismaticConfig, PrismaticModel

torch.set_num_threads(1)
GOLDEN = np.load(Path(openvla_oft.__file__).parent / "testdata" / "openvla_oft.npz")
META = json.loads(str(GOLDEN["meta"]))
KEYS: dict[str, list[int]] = json.loads(str(GOLDEN["plain_keys"]))
VOCABULARY = 576  # of the reference's 32064 rows; they are all alike
BASE_VLM = "prism-dinosiglip-224px+7b"
QWEN_VLM = "prism-qwen25-extra-dinosiglip-224px+0_5b"


def published_config(**text: object) -> dict[str, object]:
    towers = [dict(zip(("embed_dim", "depth", "num_heads"), META[name], strict=True)) for name in ("dino", "siglip")]
    return {
        **ARCHITECTURES["openvla-7b"],
        "image_sizes": [META["image_size"]] * 2,
        "text_config": {**META["text_config"], "vocab_size": VOCABULARY, **text},
        "timm_model_kwargs": towers,
    }


QWEN = {"model_type": "qwen2", "num_key_value_heads": 2, "rope_theta": 1e6, "tie_word_embeddings": True}


def random_weights(keys: dict[str, list[int]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn([VOCABULARY if size == 32064 else size for size in shape], generator=generator) * 0.02
        for key, shape in keys.items()
    }


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """All of OpenVLA's, dead ones too, by the names of the Hugging Face layout."""
    return random_weights(KEYS)


def write_hf(directory: Path, weights: dict[str, Tensor]) -> Path:
    directory.mkdir(exist_ok=True)
    assets = layouts.Assets(published_config(), small_tokenizer(), layouts.default_normalizations(2))
    layouts.write_model(directory, tensors={"x": torch.zeros(1)}, assets=assets)  # for what lies beside the weights
    save_file(weights, directory / "model.safetensors")
    return directory


def native_parts(weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Back from the Hugging Face names to those that Prismatic trains with."""
    vision, projector, llm = ({}, {}, {})
    for key, value in weights.items():
        part, rest = key.split(".", 1)
        if part == "projector":
            layer, kind = rest.split(".")
            projector[f"projector.{2 * (int(layer[2]) - 1)}.{kind}"] = value
        elif part == "language_model":
            llm[f"llm.{rest}"] = value
        else:
            tower, name = rest.split(".", 1)
            tower = {"featurizer": "dino_featurizer", "fused_featurizer": "siglip_featurizer"}[tower]
            vision[f"{tower}.{name.replace('scale_factor', 'gamma')}"] = value
    return {"vision_backbone": vision, "projector": projector, "llm_backbone": llm}


def write_native(directory: Path, parts: dict[str, dict[str, Tensor]], base_vlm: str = BASE_VLM) -> Path:
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"vla": {"base_vlm": base_vlm, "use_wrist_image": False}}))
    small_tokenizer().save(str(directory / "tokenizer.json"))
    torch.save({"model": parts}, directory / "checkpoints" / "step-295000-epoch-40-loss=0.2200.pt")
    return directory


def shrink_base_vlms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs have base models as small as the golden one."""
    qwen = {**published_config(**QWEN), "llm_backbone_id": "qwen25-0_5b-extra", "hf_llm_id": "Qwen/Qwen2.5-0.5B"}
    monkeypatch.setattr(prismatic_native, "BASE_VLMS", {BASE_VLM: published_config(), QWEN_VLM: qwen})


@pytest.fixture
def small_base_vlms(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_base_vlms(monkeypatch)


def trunk(directory: Path, *, film: bool = False) -> tuple[PrismaticConfig, dict[str, tuple[int, ...]]]:
    assets = read_assets(directory)
    config = trunk_config(assets.published, source=str(directory))
    if film:
        config = config.with_film()
    with torch.device("meta"):
        return config, layouts.shapes_of(PrismaticModel(config))


def read(directory: Path, *, film: bool = False) -> dict[str, Tensor]:
    config, expected = trunk(directory, film=film)
    return read_trunk(directory, config, expected)


def test_a_model_with_one_tower_has_a_projector_of_two_layers(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """openvla-v01-7b: SigLIP alone, under the first tower's name."""
    siglip, width = META["siglip"][0], META["text_config"]["hidden_size"]
    own = "vision_backbone.fused_featurizer."
    single = {key.replace(own, "vision_backbone.featurizer."): weights[key] for key in weights if key.startswith(own)}
    single |= {key: value for key, value in weights.items() if key.startswith("language_model.")}
    single |= random_weights({f"projector.fc{k}.weight": [width, size] for k, size in ((1, siglip), (2, width))})
    single |= random_weights({f"projector.fc{k}.bias": [width] for k in (1, 2)})
    config = published_config()
    for name in ("timm_model_ids", "timm_model_kwargs", "image_sizes", "timm_override_act_layers"):
        config[name] = cast(list[object], config[name])[1:]
    assets = layouts.Assets(config, small_tokenizer(), layouts.default_normalizations(2)[1:])
    layouts.write_model(tmp_path, tensors=single, assets=assets)
    found = read(tmp_path)
    assert {"projector.fc2.bias", "vision_backbone.featurizer.blocks.0.attn.qkv.weight"} < set(found)
    assert all(torch.equal(value, single[key]) for key, value in found.items())
    assert read_assets(tmp_path).normalizations == layouts.default_normalizations(2)[1:]


def test_a_hugging_face_directory_gives_its_weights(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    found = read(write_hf(tmp_path, weights))
    assert len(found) > 50
    assert all(torch.equal(value, weights[key]) for key, value in found.items())


@pytest.mark.usefixtures("small_base_vlms")
def test_a_prismatic_run_gives_the_same_trunk_as_its_conversion(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    converted = read(write_hf(tmp_path / "hf", weights))
    native = read(write_native(tmp_path / "run", native_parts(weights)))
    assert set(native) == set(converted)
    assert all(torch.equal(native[key], value) for key, value in converted.items())
    assets = read_assets(tmp_path / "run")
    assert assets.normalizations == layouts.default_normalizations(2)
    assert assets.tokenizer.encode("red").ids == small_tokenizer().encode("red").ids


@pytest.mark.usefixtures("small_base_vlms")
def test_of_several_checkpoints_the_latest_is_read(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    run = write_native(tmp_path / "run", native_parts(weights))
    torch.save({"model": {}}, run / "checkpoints" / "step-001000-epoch-00-loss=9.0000.pt")
    assert read(run)
    later = {key: value + 1 for key, value in weights.items()}
    torch.save({"model": native_parts(later)}, run / "checkpoints" / "latest-checkpoint.pt")
    assert torch.equal(read(run)["projector.fc1.bias"], later["projector.fc1.bias"])


def qwen_parts() -> dict[str, dict[str, Tensor]]:
    """A MiniVLA run: grouped keys, biases, tied embeddings under both names (Qwen2ForCausalLM's)."""
    keys = dict(KEYS)
    width, key_width = META["text_config"]["hidden_size"], META["text_config"]["hidden_size"] // 2
    for key in KEYS:
        if match := re.fullmatch(r"(language_model\.model\.layers\.\d+\.self_attn\.([qkv])_proj)\.weight", key):
            size = width if match[2] == "q" else key_width
            keys |= {key: [size, width], f"{match[1]}.bias": [size]}
    weights = random_weights(keys)
    weights["language_model.lm_head.weight"] = weights["language_model.model.embed_tokens.weight"]
    return native_parts(weights)


@pytest.mark.usefixtures("small_base_vlms")
def test_a_minivla_run_loads_with_its_tied_embeddings_and_action_tokens(tmp_path: Path) -> None:
    parts = qwen_parts()
    run = write_native(tmp_path / "run", parts, QWEN_VLM)
    found = read(run)
    llm = parts["llm_backbone"]
    assert "language_model.lm_head.weight" not in found
    assert torch.equal(found["language_model.model.embed_tokens.weight"], llm["llm.model.embed_tokens.weight"])
    bias = "layers.0.self_attn.k_proj.bias"
    assert torch.equal(found[f"language_model.model.{bias}"], llm[f"llm.model.{bias}"])
    tokenizer = read_assets(run).tokenizer
    before = small_tokenizer().get_vocab_size()
    assert [tokenizer.token_to_id(f"<|extra_{index}|>") for index in (0, 255)] == [before, before + 255]


@pytest.mark.usefixtures("small_base_vlms")
def test_a_minivla_run_whose_matrices_came_apart_is_refused(tmp_path: Path) -> None:
    parts = qwen_parts()
    parts["llm_backbone"]["llm.lm_head.weight"] = parts["llm_backbone"]["llm.lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from llm\.model\.embed_tokens\.weight"):
        read(write_native(tmp_path / "run", parts, QWEN_VLM))


@pytest.mark.usefixtures("small_base_vlms")
def test_a_run_is_read_strictly(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    parts = native_parts(weights)
    del parts["projector"]["projector.4.bias"]
    parts["projector"]["projector.6.bias"] = torch.zeros(3)
    parts["vision_backbone"]["dino_featurizer.pos_embed"] = torch.zeros(1, 9, 32)
    parts["llm_backbone"]["llm.model.rotary.inv_freq"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        read(write_native(tmp_path / "run", parts))
    for part in (
        "1 missing: projector.fc3.bias",
        "2 unexpected: language_model.model.rotary.inv_freq, projector.projector.6.bias",
        "1 of another shape: vision_backbone.featurizer.pos_embed [1, 9, 32] instead of [1, 16, 32]",
    ):
        assert part in str(caught.value)


@pytest.mark.usefixtures("small_base_vlms")
def test_a_run_without_its_frozen_vision_backbone_says_what_to_do(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    parts = native_parts(weights)
    del parts["vision_backbone"]
    with pytest.raises(CheckpointError, match=r"has no vision_backbone: .* convert_openvla_weights_to_hf\.py"):
        read(write_native(tmp_path / "run", parts))


def test_a_run_of_an_unknown_base_is_named(tmp_path: Path) -> None:
    run = write_native(tmp_path / "run", {}, "phi-2+3b")
    with pytest.raises(CheckpointError, match=r"vla\.base_vlm is 'phi-2\+3b'; expected one of prism-dinosiglip-224px"):
        read_assets(run)
    for damaged in ({}, {"vla": {"base_vlm": [1]}}):
        (run / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match=r"config\.json names no vla\.base_vlm"):
            read_assets(run)


def test_runs_use_llama_with_its_own_epsilon_and_the_conversion_does_not() -> None:
    native = trunk_config(prismatic_native.BASE_VLMS[BASE_VLM], source="run")
    assert native.decoder.rms_norm_eps == 1e-5
    assert trunk_config(architecture("openvla-7b"), source="hf").decoder.rms_norm_eps == 1e-6


@pytest.mark.usefixtures("small_base_vlms")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "is damaged or cut off"),
        (lambda path: path.write_bytes(b""), "is damaged or cut off"),
        (lambda path: path.write_text("<html>no such file</html>"), "is damaged or cut off"),
        (lambda path: path.write_bytes(b"\x80\x02h\x05."), "is damaged or cut off"),
        (lambda path: torch.save({"model": Path("x")}, path), "holds more than tensors and plain values"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is git-lfs's pointer"),
        (lambda path: torch.save([1, 2], path), "is a list; expected a dictionary"),
        (lambda path: torch.save({"weights": {}}, path), "has no 'model'"),
        (lambda path: torch.save({"model": {"vision_backbone": {"x": 3}}}, path), "is not a dictionary of tensors"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(
    tmp_path: Path, weights: dict[str, Tensor], spoil: Callable[[Path], None], said: str
) -> None:
    run = write_native(tmp_path / "run", native_parts(weights))
    (path,) = (run / "checkpoints").glob("*.pt")
    spoil(path)
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))}.* {said}"):
        read(run)


@pytest.mark.usefixtures("small_base_vlms")
def test_a_checkpoint_of_the_format_before_zip_files_is_read(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    run = write_native(tmp_path / "run", native_parts(weights))
    (path,) = (run / "checkpoints").glob("*.pt")
    torch.save({"model": native_parts(weights)}, path, _use_new_zipfile_serialization=False)
    assert all(torch.equal(value, weights[key]) for key, value in read(run).items())


@pytest.mark.usefixtures("small_base_vlms")
def test_the_weights_that_no_one_reads_are_found_in_every_layout(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    for directory in (write_hf(tmp_path / "hf", weights), write_native(tmp_path / "run", native_parts(weights))):
        config, expected = trunk(directory)
        dead = read_dead(directory, config)
        assert set(dead) == set(weights) - set(expected)
        assert all(torch.equal(value, weights[key]) for key, value in dead.items())


def test_statistics_beside_the_model_come_before_those_in_its_config(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    write_hf(tmp_path, weights)
    assert base_statistics(tmp_path) == {}
    (tmp_path / "config.json").write_text(json.dumps({**published_config(), "norm_stats": statistics_of("bridge", 7)}))
    assert base_statistics(tmp_path) == {"bridge": 7}
    (tmp_path / "dataset_statistics.json").write_text(
        json.dumps({**statistics_of("libero", 6), "x": {"action": {"mean": 3}}})
    )
    assert base_statistics(tmp_path) == {"libero": 6}


def statistics_of(name: str, size: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    return {name: {"action": {"mean": [0.0] * size}}}


@pytest.mark.usefixtures("small_base_vlms")
def test_a_run_without_a_tokenizer_says_where_to_lay_one(
    tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_native(tmp_path / "run", native_parts(weights))
    (run / "tokenizer.json").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=r"run lacks tokenizer\.json and .* did not give it .* put it into"):
        read_assets(run)
