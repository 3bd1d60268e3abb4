"""Adapters: which layers get them, what is saved, and what folding keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from crane_x7_vla.checkpoints.lora import add_adapters, check_names, fold, folded, restore_adapters, save_adapters
from crane_x7_vla.errors import CheckpointError, ConfigError

torch.set_num_threads(1)
TRAINED = ("action_head", "blocks.*.norm")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.fc1 = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc1(self.norm(x))


class Model(nn.Module):
    """A convolution, blocks, and a head whose layer has the name of an adapted one."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 16, 4, stride=4)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.action_head = nn.Sequential()
        self.action_head.add_module("fc1", nn.Linear(16, 4))

    def forward(self, images: Tensor) -> Tensor:
        x = self.proj(images).flatten(2).mean(2)
        for block in self.blocks:
            x = block(x)
        return self.action_head(x)


def base(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model()


def adapted(
    *, size: float = 0.1, targets: tuple[str, ...] = ("proj", "fc1"), trained: tuple[str, ...] = TRAINED
) -> PeftModel:
    """A model with adapters that have learnt something of the given size."""
    model = add_adapters(
        base(),
        rank=4,
        alpha=8,
        dropout=0.0,
        targets=targets,
        trained=trained,
        without=("action_head",),
        base_model="base",
        seed=1,
    )
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=size)
    return model


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def test_adapters_go_to_the_named_layers_and_not_to_what_is_trained_in_full() -> None:
    trainable = {name for name, parameter in adapted().named_parameters() if parameter.requires_grad}
    layers = {name.split("base_model.model.")[1] for name in trainable}
    assert layers == {
        *(f"{layer}.lora_{side}.default.weight" for layer in ("proj", "blocks.0.fc1", "blocks.1.fc1") for side in "AB"),
        "action_head.fc1.weight",
        "action_head.fc1.bias",
        *(f"blocks.{index}.norm.{kind}" for index in (0, 1) for kind in ("weight", "bias")),
    }


def test_a_target_or_module_that_is_not_there_is_named_with_what_is() -> None:
    with torch.device("meta"):  # weights play no part
        model = Model()

    def check(targets: Sequence[str] = ("proj", "fc1"), trained: Sequence[str] = TRAINED) -> None:
        check_names(model, targets=targets, trained=trained, without=("action_head",), section="openvla")

    check()
    check(targets=("blocks.1.fc1",), trained=("blocks.0.norm.weight",))
    for target in ("q_proj", "c1", "action_head.fc1"):
        message = rf"^openvla\.lora_target names '{target}', which no layer .*; expected names among: fc1, proj$"
        with pytest.raises(ConfigError, match=message):
            check(targets=("fc1", target))
    with pytest.raises(ConfigError, match=r"^openvla\.trained_modules names 'slots'.*it has action_head, blocks, proj"):
        check(trained=("action_head", "slots"))


@pytest.mark.filterwarnings("error")
def test_what_is_trained_in_full_may_be_a_parameter_that_no_module_is_called() -> None:
    model = add_adapters(
        base(),
        rank=4,
        alpha=8,
        dropout=0.0,
        targets=("fc1",),
        trained=("blocks.0.norm.weight",),
        without=(),
        base_model="base",
        seed=1,
    )
    whole = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora" not in name}
    assert whole == {"base_model.model.blocks.0.norm.weight"}


def test_what_is_saved_is_restored_and_is_trainable_again(tmp_path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        model.get_parameter("base_model.model.blocks.1.norm.weight").add_(0.5)
    save_adapters(model, tmp_path, base_fingerprint="f")
    restored = restore_adapters(base(), tmp_path, trained=TRAINED, base_fingerprint="f")
    assert torch.equal(restored(IMAGES), model(IMAGES))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in restored.named_parameters() if parameter.requires_grad} == trainable


def test_the_adapter_folder_is_what_peft_itself_loads(tmp_path: Path) -> None:
    model = adapted(trained=())
    save_adapters(model, tmp_path, base_fingerprint="f")
    keys = load_file(tmp_path / "lora_adapters" / "adapter_model.safetensors")
    assert "base_model.model.blocks.1.fc1.lora_A.weight" in keys
    config = json.loads((tmp_path / "lora_adapters" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("base", 4, 8)
    assert sorted(config["target_modules"]) == ["fc1", "proj"]
    loaded = PeftModel.from_pretrained(base(), str(tmp_path / "lora_adapters"))
    assert torch.equal(loaded(IMAGES), model(IMAGES))


def test_another_base_model_is_noticed_though_its_shapes_fit(tmp_path: Path) -> None:
    save_adapters(adapted(), tmp_path, base_fingerprint="f")
    with pytest.raises(CheckpointError, match="another base model than the one given; its base was base"):
        restore_adapters(base(), tmp_path, trained=TRAINED, base_fingerprint="g")


@pytest.mark.parametrize("name", ["lora_adapters/adapter_model.safetensors", "modules.safetensors"])
def test_a_file_cut_off_or_missing_is_named(tmp_path: Path, name: str) -> None:
    save_adapters(adapted(), tmp_path, base_fingerprint="f")
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=f"{file.name} is damaged or cut off"):
        restore_adapters(base(), tmp_path, trained=TRAINED, base_fingerprint="f")
    file.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {file.name}"):
        restore_adapters(base(), tmp_path, trained=TRAINED, base_fingerprint="f")


def test_modules_that_were_not_saved_are_missing_not_random(tmp_path: Path) -> None:
    save_adapters(adapted(trained=("action_head",)), tmp_path, base_fingerprint="f")
    with pytest.raises(CheckpointError, match=r"4 missing: blocks\.0\.norm\.bias"):
        restore_adapters(base(), tmp_path, trained=TRAINED, base_fingerprint="f")


def test_folding_in_float32_keeps_the_outputs_of_linear_and_convolution() -> None:
    model = adapted()
    expected = model(IMAGES).detach()
    assert (base()(IMAGES) - expected).abs().max() > 0.05
    bare, report = fold(model, dtype=None)
    assert set(bare.state_dict()) == set(base().state_dict())
    torch.testing.assert_close(bare(IMAGES), expected, rtol=1e-5, atol=1e-5)
    assert report.layers == 3
    assert report.error < 1e-4


def test_a_bias_of_an_adapted_layer_that_was_trained_in_full_keeps_float32(tmp_path: Path) -> None:
    trained = ("action_head", "blocks.1.fc1.bias")
    model = adapted(trained=trained)
    with torch.no_grad():
        model.get_parameter("base_model.model.blocks.1.fc1.base_layer.bias").fill_(1 + 2**-20)
    save_adapters(model, tmp_path, base_fingerprint="f")
    assert "blocks.1.fc1.bias" in load_file(tmp_path / "modules.safetensors")
    bare, _ = fold(restore_adapters(base(), tmp_path, trained=trained, base_fingerprint="f"), dtype=torch.bfloat16)
    assert torch.equal(bare.get_parameter("blocks.1.fc1.bias"), torch.full((16,), 1 + 2**-20))
    assert bare.get_parameter("blocks.0.fc1.bias").dtype == torch.bfloat16


@pytest.mark.parametrize(("size", "low", "high"), [(1e-4, 0.6, 3.0), (1e-3, 0.1, 0.3), (1.0, 0.0, 0.02)])
def test_the_report_says_how_much_of_a_small_update_bfloat16_swallows(size: float, low: float, high: float) -> None:
    """An update of 0.1 % of the weights is lost in rounding, of 1 % a sixth, of their own size nothing to speak of."""
    _, report = fold(adapted(size=size), dtype=torch.bfloat16)
    assert low < report.error < high
    assert report.worst >= report.error
    assert report.worst_layer in ("proj", "blocks.0.fc1", "blocks.1.fc1")


def test_weights_with_the_adapters_added_are_those_of_folding_and_leave_the_model_alone() -> None:
    model = adapted(size=1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = folded(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    bare, _ = fold(model, dtype=None)
    expected = bare.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
