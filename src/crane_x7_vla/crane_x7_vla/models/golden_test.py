"""The models give what the public implementations give on the same weights (testdata/README.md)."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from crane_x7_vla.models.decoder import DecoderConfig
from crane_x7_vla.models.openvla_oft import OFTHeadConfig, OpenVLAOFT
from crane_x7_vla.models.prismatic import PrismaticConfig
from crane_x7_vla.models.vit import ViTConfig

torch.set_num_threads(1)
GOLDEN = np.load(Path(__file__).parent / "testdata" / "openvla_oft.npz")
META = json.loads(str(GOLDEN["meta"]))
TOLERANCE = 2e-4


def golden_weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """Weights by the rule of testdata/README.md, from the published name and the shape."""
    name = key.rsplit("/", 1)[-1]
    if "embed_tokens" in name or "lm_head" in name:
        scale, shift = 0.05, 0.0
    elif len(shape) >= 2:
        scale, shift = 0.08, 0.0
    elif "norm" in name and name.endswith(".weight"):
        scale, shift = 0.1, 1.0
    elif name.endswith(("scale_factor", ".gamma")):
        scale, shift = 0.1, 0.5
    else:
        scale, shift = 0.02, 0.0
    random = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    values = random.standard_normal(int(np.prod(shape))).astype("float32").reshape(shape)
    return torch.from_numpy(values * np.float32(scale) + np.float32(shift))


def oft_config(*, film: bool) -> tuple[PrismaticConfig, OFTHeadConfig]:
    text = META["text_config"]
    decoder = DecoderConfig(
        **{key: text[key] for key in text if key != "pad_token_id"},
    )
    film_width = decoder.hidden_size if film else None

    def tower(
        dims: list[int], *, mlp_ratio: float, class_token: bool, registers: int, scale: float | None
    ) -> ViTConfig:
        width, depth, heads = dims
        return ViTConfig(
            image_size=META["image_size"],
            patch_size=META["patch"],
            width=width,
            blocks=depth - 1,
            heads=heads,
            mlp_width=int(width * mlp_ratio),
            class_token=class_token,
            registers=registers,
            layer_scale=scale,
            film_width=film_width,
        )

    towers = (
        tower(META["dino"], mlp_ratio=4, class_token=True, registers=4, scale=1e-5),
        tower(META["siglip"], mlp_ratio=3.7362, class_token=False, registers=0, scale=None),
    )
    head = OFTHeadConfig(
        action_dim=META["action_dim"],
        action_horizon=META["chunk"],
        hidden_dim=64,
        num_blocks=2,
        state_dim=META["action_dim"],
    )
    return PrismaticConfig(towers=towers, decoder=decoder), head


def published_name(name: str, *, film: bool) -> str:
    """Our parameter name -> salt and name it has in the reference."""
    for component in ("action_head", "proprio_projector"):
        if name.startswith(component + "."):
            return component + "/" + name.removeprefix(component + ".")
    if film and name.startswith("vision_backbone."):
        name = "vision_backbone." + name
        if ".blocks." in name and ".scale." not in name and ".shift." not in name:
            head, tail = name.split(".blocks.")
            number, rest = tail.split(".", 1)
            name = f"{head}.blocks.{number}.block.{rest}"
    return name


@pytest.fixture(scope="module", params=["plain", "film"])
def case(request: pytest.FixtureRequest) -> tuple[str, OpenVLAOFT]:
    film = request.param == "film"
    model = OpenVLAOFT(*oft_config(film=film)).eval()
    weights = {
        name: golden_weight(published_name(name, film=film), tuple(value.shape))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(weights, strict=True)
    return request.param, model


def close(actual: Tensor, expected: np.ndarray) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(actual.detach().numpy() - expected).max() / np.abs(expected).max())


def inference_ids() -> Tensor:
    prompt = torch.from_numpy(GOLDEN["input_ids"])
    slots = META["chunk"] * META["action_dim"]
    return torch.cat([prompt, torch.ones(1, slots, dtype=torch.long), torch.full((1, 1), 2)], dim=1)


def test_hidden_states_and_actions_equal_the_reference(case: tuple[str, OpenVLAOFT]) -> None:
    name, model = case
    prompt_length = torch.tensor([GOLDEN["input_ids"].shape[1]])
    proprio = torch.from_numpy(GOLDEN["proprio"])[None]
    with torch.inference_mode():
        hidden = model.hidden(torch.from_numpy(GOLDEN["pixel_values"]), inference_ids(), prompt_length, proprio)
        normalised = model.action_head(hidden)[0]
    stats = META["norm_stats"]["crane_x7"]["action"]
    low, high = np.float32(stats["q01"]), np.float32(stats["q99"])
    actions = 0.5 * (normalised.numpy() + 1) * (high - low + 1e-8) + low
    assert close(hidden, GOLDEN[f"{name}_hidden"]) < TOLERANCE
    assert close(torch.from_numpy(actions), GOLDEN[f"{name}_actions"]) < TOLERANCE


def test_padded_training_forward_equals_the_reference(case: tuple[str, OpenVLAOFT]) -> None:
    name, model = case
    labels = torch.from_numpy(GOLDEN["labels"])
    prompt_length = (labels != -100).int().argmax(dim=1)
    with torch.inference_mode():
        prediction = model(
            torch.from_numpy(GOLDEN["pixel_values"]).expand(2, -1, -1, -1),
            torch.from_numpy(GOLDEN["padded_ids"]),
            prompt_length,
            torch.from_numpy(GOLDEN["proprio"]).expand(2, -1),
            torch.from_numpy(GOLDEN["attention_mask"]),
        )
    assert close(prediction, GOLDEN[f"{name}_train_pred"]) < TOLERANCE


def test_parameters_have_the_published_names_and_shapes(case: tuple[str, OpenVLAOFT]) -> None:
    name, model = case
    film = name == "film"
    published = dict(json.loads(str(GOLDEN[f"{name}_keys"])))
    for component in ("action_head", "proprio_projector"):
        keys = json.loads(str(GOLDEN["head_keys" if component == "action_head" else "proprio_keys"]))
        published |= {f"{component}/{key}": shape for key, shape in keys.items()}
    ours = {published_name(key, film=film): list(value.shape) for key, value in model.state_dict().items()}
    assert {key: published.get(key) for key in ours} == ours
    unused = sorted(set(published) - set(ours))
    dead = r"(vision_backbone\.)+(featurizer\.(blocks\.3|norm)|fused_featurizer\.(blocks\.4|norm|attn_pool))\..*"
    assert len(unused) > 20
    assert [key for key in unused if not re.fullmatch(dead, key)] == []
