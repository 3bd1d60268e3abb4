"""The models give what the public implementations give on the same weights (testdata/README.md)."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crane_x7_vla.models.action_tokens import TokenBins
from crane_x7_vla.models.decoder import DecoderConfig
from crane_x7_vla.models.openvla import OpenVLA
from crane_x7_vla.models.openvla_oft import OFTHeadConfig, OpenVLAOFT
from crane_x7_vla.models.prismatic import PrismaticConfig, insert_after_first
from crane_x7_vla.models.vit import ViTConfig

torch.set_num_threads(1)
TESTDATA = Path(__file__).parent / "testdata"
GOLDEN = np.load(TESTDATA / "openvla_oft.npz")
META = json.loads(str(GOLDEN["meta"]))
OPENVLA = np.load(TESTDATA / "openvla.npz")
OPENVLA_META = json.loads(str(OPENVLA["meta"]))
BINS = TokenBins(end=32000)
DEAD = r"(vision_backbone\.)+(featurizer\.(blocks\.3|norm)|fused_featurizer\.(blocks\.4|norm|attn_pool))\..*"
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


def trunk_config(meta: dict[str, Any], *, film: bool = False) -> PrismaticConfig:
    """Dimensions of the trunk that a reference file was made with."""
    text = meta["text_config"]
    decoder = DecoderConfig(**{key: text[key] for key in text if key != "pad_token_id"})

    def tower(
        dims: list[int], *, mlp_ratio: float, class_token: bool, registers: int, scale: float | None
    ) -> ViTConfig:
        width, depth, heads = dims
        return ViTConfig(
            image_size=meta["image_size"],
            patch_size=meta["patch"],
            width=width,
            blocks=depth - 1,
            heads=heads,
            mlp_width=int(width * mlp_ratio),
            class_token=class_token,
            registers=registers,
            layer_scale=scale,
            film_width=decoder.hidden_size if film else None,
        )

    towers = (
        tower(meta["dino"], mlp_ratio=4, class_token=True, registers=4, scale=1e-5),
        tower(meta["siglip"], mlp_ratio=3.7362, class_token=False, registers=0, scale=None),
    )
    return PrismaticConfig(towers=towers, decoder=decoder)


def oft_config(*, film: bool) -> tuple[PrismaticConfig, OFTHeadConfig]:
    head = OFTHeadConfig(
        action_dim=META["action_dim"],
        action_horizon=META["chunk"],
        hidden_dim=64,
        num_blocks=2,
        state_dim=META["action_dim"],
        film_counts_padding=True,
    )
    return trunk_config(META, film=film), head


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
        prediction = model.train()(
            torch.from_numpy(GOLDEN["pixel_values"]).expand(2, -1, -1, -1),
            torch.from_numpy(GOLDEN["padded_ids"]),
            prompt_length,
            torch.from_numpy(GOLDEN["proprio"]).expand(2, -1),
            torch.from_numpy(GOLDEN["attention_mask"]),
        )
    model.eval()
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
    assert len(unused) > 20
    assert [key for key in unused if not re.fullmatch(DEAD, key)] == []


@pytest.fixture(scope="module")
def openvla() -> OpenVLA:
    model = OpenVLA(trunk_config(OPENVLA_META)).eval()
    weights = {name: golden_weight(name, tuple(value.shape)) for name, value in model.state_dict().items()}
    model.load_state_dict(weights, strict=True)
    return model


def radians(normalised: Tensor) -> Tensor:
    """By OpenVLA's formula, which leaves what is not in ``mask`` as it is."""
    stats = OPENVLA_META["norm_stats"]["crane_x7"]["action"]
    low, high = torch.tensor(stats["q01"]), torch.tensor(stats["q99"])
    return torch.where(torch.tensor(stats["mask"]), 0.5 * (normalised + 1) * (high - low) + low, normalised)


def test_openvla_sees_and_reads_what_the_reference_does(openvla: OpenVLA) -> None:
    pixels, ids = torch.from_numpy(OPENVLA["pixel_values"]), torch.from_numpy(OPENVLA["input_ids"])
    with torch.inference_mode():
        assert close(openvla.vision_backbone(pixels), OPENVLA["vision"]) < TOLERANCE
        assert close(openvla.embed_images(pixels), OPENVLA["projected"]) < TOLERANCE
        llm = openvla.language_model
        embeddings = insert_after_first(llm.model.embed_tokens(ids), openvla.embed_images(pixels))
        states = llm.model(embeddings, causal=True)
        assert close(llm.logits(states[:, -4:]), OPENVLA["logits_last"]) < TOLERANCE
        assert close(llm.logits(states, BINS.rows), OPENVLA["logits_action_rows"]) < TOLERANCE


def test_openvla_loss_over_a_padded_batch_equals_the_reference(openvla: OpenVLA) -> None:
    ids, labels = torch.from_numpy(OPENVLA["padded_ids"]), torch.from_numpy(OPENVLA["labels"])
    labelled = labels != -100
    prompt_length = labelled.int().argmax(dim=1)
    targets = labels[labelled].view(2, -1)
    prompts = ids[:, : int(prompt_length.max())]
    with torch.inference_mode():
        logits = openvla(
            torch.from_numpy(OPENVLA["pixel_values"]).expand(2, -1, -1, -1), prompts, targets, prompt_length
        )
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert targets.shape[1] == OPENVLA_META["action_dim"] + 1
    assert close(loss, OPENVLA["loss"]) < TOLERANCE


@pytest.mark.parametrize(
    ("rows", "tokens", "actions"),
    [
        (None, OPENVLA["generated"][0, -8:], OPENVLA["actions"]),
        (BINS.rows, OPENVLA["generated_action_tokens"], OPENVLA["actions_from_action_tokens"]),
    ],
    ids=["whole vocabulary", "action tokens"],
)
@pytest.mark.parametrize("padding", [None, 0, 3])
def test_openvla_writes_the_tokens_of_the_reference(
    openvla: OpenVLA, rows: range | None, tokens: np.ndarray, actions: np.ndarray, padding: int | None
) -> None:
    ids = torch.from_numpy(OPENVLA["input_ids"])
    length = None if padding is None else torch.tensor([ids.shape[1]])
    generated = openvla.generate(
        torch.from_numpy(OPENVLA["pixel_values"]), F.pad(ids, (0, padding or 0), value=7), length, count=8, rows=rows
    )
    assert generated.tolist() == [tokens.tolist()]
    assert close(radians(BINS.values(generated[0])), actions) < 1e-6


def test_openvla_parameters_have_the_published_names_and_shapes(openvla: OpenVLA) -> None:
    published = json.loads(str(OPENVLA["keys"]))
    ours = {name: list(value.shape) for name, value in openvla.state_dict().items()}
    assert {name: published.get(name) for name in ours} == ours
    unused = set(published) - set(ours)
    assert unused
    assert [name for name in unused if not re.fullmatch(DEAD, name)] == []
