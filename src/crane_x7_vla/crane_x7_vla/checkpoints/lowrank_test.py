"""Low-rank updates in published files: folders that peft writes, and live ones in a vision backbone with FiLM."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crane_x7_vla.checkpoints import layouts
from crane_x7_vla.checkpoints.lowrank import fold_adapters
from crane_x7_vla.checkpoints.published import read_assets, read_dead
from crane_x7_vla.checkpoints.published_test import GOLDEN, KEYS, random_weights, read, trunk, write_hf
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.models.prismatic import PrismaticModel

torch.set_num_threads(1)
FILM_KEYS: dict[str, list[int]] = json.loads(str(GOLDEN["film_keys"]))
# What all-linear becomes on the published class (peft 0.11.1).
PEFT_TARGETS = [
    *("qkv", "proj", "fc1", "fc2", "fc3", "q", "kv"),
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
]


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """All of OpenVLA's, dead ones too."""
    return random_weights(KEYS)


def adapters(names: list[str], weights: dict[str, Tensor], *, rank: int = 4) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) of each layer, shaped as peft shapes them for linear layers and convolutions."""
    generator = torch.Generator().manual_seed(1)

    def pair(weight: Tensor) -> tuple[Tensor, Tensor]:
        outputs, *inputs = weight.shape
        b = torch.randn(outputs, rank, *[1] * (len(inputs) - 1), generator=generator)
        return torch.randn(rank, *inputs, generator=generator) * 0.1, b * 0.1

    return {name: pair(weights[f"{name}.weight"]) for name in names}


def all_linear(weights: dict[str, Tensor]) -> list[str]:
    layers = [
        key.removesuffix(".weight") for key, value in weights.items() if key.endswith(".weight") and value.ndim > 1
    ]
    return [name for name in layers if name.rsplit(".", 1)[-1] in PEFT_TARGETS]


def updated(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """By the definition, an output channel at a time."""
    rows = [torch.einsum("r,ri->i", row.flatten(), a.flatten(1)) for row in b]
    return weight + scale * torch.stack(rows).reshape(weight.shape)


def write_adapters(folder: Path, pairs: dict[str, tuple[Tensor, Tensor]], base: Path, **settings: object) -> Path:
    folder.mkdir(parents=True)
    halves: dict[str, Tensor] = {}
    for name, (a, b) in pairs.items():
        halves[f"base_model.model.{name}.lora_A.weight"] = a.clone()
        halves[f"base_model.model.{name}.lora_B.weight"] = b.clone()
    save_file(halves, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 2,
        "bias": "none",
        "target_modules": PEFT_TARGETS,
        "base_model_name_or_path": str(base),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder


def test_adapters_with_the_published_targets_are_folded_into_their_base(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    base = write_hf(tmp_path / "base", weights)
    pairs = adapters(all_linear(weights), weights)
    assert {"vision_backbone.featurizer.patch_embed.proj", "language_model.lm_head"} < set(pairs)
    assert "vision_backbone.fused_featurizer.attn_pool.kv" in pairs
    found = read(write_adapters(tmp_path / "adapters", pairs, base))
    for key, value in found.items():
        pair = pairs.get(key.removesuffix(".weight"))
        torch.testing.assert_close(value, weights[key] if pair is None else updated(weights[key], *pair, 0.5))
    assert read_assets(tmp_path / "adapters").published == read_assets(base).published
    dead = read_dead(tmp_path / "adapters", trunk(base)[0])
    assert set(dead) == set(weights) - set(found)


class PublishedClass(PrismaticModel):
    """As transformers' models say them, which makes peft save the frozen output matrix beside its adapter."""

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module | None:
        return self.language_model.lm_head


@pytest.mark.parametrize("stabilised", [False, True])
def test_what_peft_saves_is_folded_as_peft_merges_it(
    tmp_path: Path, weights: dict[str, Tensor], stabilised: bool
) -> None:
    base = write_hf(tmp_path / "base", weights)
    config, _ = trunk(base)
    model = PublishedClass(config)
    model.load_state_dict(read(base))
    settings = LoraConfig(
        r=4, lora_alpha=6, target_modules=PEFT_TARGETS, use_rslora=stabilised, init_lora_weights="gaussian"
    )
    adapted = get_peft_model(model, settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    settings.base_model_name_or_path = str(base)
    adapted.save_pretrained(str(tmp_path / "adapters"))
    frozen = "base_model.model.language_model.lm_head.base_layer.weight"
    assert frozen in load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    merged = cast(LoraModel, adapted.base_model).merge_and_unload().state_dict()
    found = read(tmp_path / "adapters")
    assert set(found) == set(merged)
    for key, value in found.items():
        torch.testing.assert_close(value, merged[key])
    write_hf(base, {**weights, "language_model.lm_head.weight": weights["language_model.lm_head.weight"] + 1})
    with pytest.raises(CheckpointError, match=r"adapters was trained on another base model .*lm_head\.weight differs"):
        read(tmp_path / "adapters")


def test_adapters_that_miss_a_layer_or_do_not_fit_are_an_error(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    base = write_hf(tmp_path / "base", weights)
    pairs = adapters(all_linear(weights), weights)
    del pairs["projector.fc2"]
    pairs["projector.fc9"] = pairs["projector.fc3"]
    pairs["projector.fc1"] = (pairs["projector.fc1"][0], torch.zeros(7, 4))
    with pytest.raises(CheckpointError) as caught:
        read(write_adapters(tmp_path / "adapters", pairs, base))
    for part in (
        "2 missing: projector.fc2.lora_A.weight, projector.fc2.lora_B.weight",
        "2 unexpected: projector.fc9.lora_A.weight, projector.fc9.lora_B.weight",
        "1 of another shape: projector.fc1.lora_B.weight [7, 4] instead of [320, 4]",
    ):
        assert part in str(caught.value)


def test_adapters_of_another_rank_than_their_configuration_says_are_an_error(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    base = write_hf(tmp_path / "base", weights)
    pairs = adapters(all_linear(weights), weights)
    with pytest.raises(CheckpointError, match=r"of another shape: .*lora_A\.weight \[4, .* instead of \[8, "):
        read(write_adapters(tmp_path / "adapters", pairs, base, r=8))


def test_adapters_of_another_method_are_not_read_as_plain_ones(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    base = write_hf(tmp_path / "base", weights)
    pairs = adapters(all_linear(weights), weights)
    with pytest.raises(CheckpointError, match=r"use_dora.* expected plain LoRA adapters"):
        read(write_adapters(tmp_path / "adapters", pairs, base, use_dora=True))


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (
            "/scr/checkpoints/base",
            "names in base_model_name_or_path what is not there: base model /scr/checkpoints/base",
        ),
        (3, "base_model_name_or_path is 3; expected text"),
        (None, "names no base model; write it in base_model_name_or_path"),
    ],
)
def test_adapters_whose_base_cannot_be_read_are_named(tmp_path: Path, base: object, said: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json:? {said}"):
        read_assets(tmp_path)


@pytest.mark.parametrize("names", [("one",), ("one", "two"), ("first", "one", "two")])
def test_adapters_on_one_another_in_a_circle_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    bases = [*names[1:], "one"]
    for name, base in zip(names, bases, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(tmp_path / base)})
        )
    with pytest.raises(CheckpointError, match=r"base_model_name_or_path leads back to .*/one; name a whole model"):
        read_assets(tmp_path / names[0])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"r": "4"}, "r is '4'; expected a whole number"),
        ({"r": 0}, "r is 0; expected 1 or more"),
        ({"lora_alpha": None}, "lora_alpha is None; expected a number"),
        ({"target_modules": 3}, "target_modules is 3; expected a list"),
    ],
)
def test_a_damaged_adapter_configuration_is_named_with_its_key(
    tmp_path: Path, weights: dict[str, Tensor], setting: dict[str, object], said: str
) -> None:
    base = write_hf(tmp_path / "base", weights)
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {said}"):
        read(write_adapters(tmp_path / "adapters", adapters(["projector.fc1"], weights), base, **setting))


def test_adapters_of_a_base_that_peft_changed_are_refused(tmp_path: Path) -> None:
    """PiSSA takes the largest singular vectors out of the base; before any training B A gives them back."""
    published = nn.Sequential(nn.Linear(16, 16, bias=False))
    weight = published.get_parameter("0.weight").detach().clone()
    adapted = get_peft_model(published, LoraConfig(r=2, target_modules=["0"], init_lora_weights="pissa"))
    adapted.save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: init_lora_weights is 'pissa'"):
        fold_adapters({"0.weight": weight}, tmp_path, dead="none")


def write_film(directory: Path, *, live: bool) -> dict[str, Tensor]:
    """The file of a vision backbone with FiLM as openvla-oft saves it; what our vision weights must be."""
    vision = {
        key.removeprefix("vision_backbone."): value
        for key, value in random_weights(FILM_KEYS).items()
        if key.startswith("vision_backbone.")
    }
    expected = {key.replace(".block.", "."): value for key, value in vision.items()}
    if live:
        film = (".scale", ".shift")
        pairs = adapters([name for name in all_linear(vision) if not name.endswith(film)], vision, rank=32)
        assert len(pairs) > 20
        for name, (a, b) in pairs.items():
            vision[f"{name}.base_layer.weight"] = vision.pop(f"{name}.weight")
            vision[f"{name}.lora_A.default.weight"], vision[f"{name}.lora_B.default.weight"] = a, b
            if f"{name}.bias" in vision:
                vision[f"{name}.base_layer.bias"] = vision.pop(f"{name}.bias")
            key = f"{name}.weight".replace(".block.", ".")
            expected[key] = updated(expected[key], a, b, 16 / 32)
    torch.save(
        {f"module.{key}": value for key, value in vision.items()}, directory / "vision_backbone--50_checkpoint.pt"
    )
    return expected


@pytest.mark.parametrize("live", [True, False])
def test_the_vision_backbone_with_film_takes_the_place_of_the_model_files(
    tmp_path: Path, weights: dict[str, Tensor], live: bool
) -> None:
    expected = write_film(write_hf(tmp_path, weights), live=live)
    found = read(tmp_path, film=True)
    assert "vision_backbone.featurizer.blocks.0.scale.weight" in found
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key] if key.startswith("vision_") else weights[key])


def test_folded_weights_keep_the_type_that_their_module_runs_in(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """Published runs have frozen weights in bfloat16 and adapters in float32."""
    write_film(write_hf(tmp_path, weights), live=True)
    path = tmp_path / "vision_backbone--50_checkpoint.pt"
    state = {key: value if ".lora_" in key else value.bfloat16() for key, value in torch.load(path).items()}
    torch.save(state, path)
    found = read(tmp_path, film=True)
    assert {value.dtype for key, value in found.items() if key.startswith("vision_")} == {torch.bfloat16}


@pytest.mark.parametrize(("halves", "said"), [("B", "1 missing: "), ("AB", r"2 missing: .*qkv\.lora_A.*, ")])
def test_an_adapter_missing_in_the_vision_backbone_is_an_error(
    tmp_path: Path, weights: dict[str, Tensor], halves: str, said: str
) -> None:
    write_film(write_hf(tmp_path, weights), live=True)
    path = tmp_path / "vision_backbone--50_checkpoint.pt"
    state = torch.load(path)
    for half in halves:
        del state[f"module.vision_backbone.featurizer.blocks.1.block.attn.qkv.lora_{half}.default.weight"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=said + r".*blocks\.1\.block\.attn\.qkv\.lora_B"):
        read(tmp_path, film=True)


def test_what_was_trained_with_film_is_not_read_without(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    write_film(write_hf(tmp_path / "theirs", weights), live=False)
    with pytest.raises(CheckpointError, match=r"vision_backbone--50_checkpoint\.pt .* film\.enabled: true"):
        read(tmp_path / "theirs")
    layouts.save_tensors(write_hf(tmp_path / "ours", weights) / "film.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"film\.safetensors .* film\.enabled: true"):
        read(tmp_path / "ours")


def test_a_base_without_film_gives_everything_else(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    write_hf(tmp_path, weights)
    assert set(read(tmp_path, film=True)) == set(read(tmp_path))


@pytest.mark.parametrize("film", [True, False])
def test_a_run_of_openvla_oft_that_was_not_merged_is_read_through_its_adapters(
    tmp_path: Path, weights: dict[str, Tensor], film: bool
) -> None:
    base, run = write_hf(tmp_path / "base", weights), tmp_path / "run"
    pairs = adapters(all_linear(weights), weights)
    saved = {
        re.sub(r"(blocks\.\d+)\.", r"\1.block.", f"vision_backbone.{name}") if film and "vision" in name else name: pair
        for name, pair in pairs.items()
    }
    write_adapters(run / "lora_adapter", saved, base)
    if film:
        vision = write_film(run, live=True)
    found = read(run, film=film)
    torch.testing.assert_close(
        found["projector.fc2.weight"], updated(weights["projector.fc2.weight"], *pairs["projector.fc2"], 0.5)
    )
    name = "vision_backbone.featurizer.blocks.0.attn.qkv"
    expected = vision[f"{name}.weight"] if film else updated(weights[f"{name}.weight"], *pairs[name], 0.5)
    torch.testing.assert_close(found[f"{name}.weight"], expected)
