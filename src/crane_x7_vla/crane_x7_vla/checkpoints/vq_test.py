from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crane_x7_vla.checkpoints.vq import TrainedVQ, VQUnits, load_vq, save_vq
from crane_x7_vla.data.statistics import DatasetStatistics, to_json
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.models.vq import ActionVQ, VQShape
from crane_x7_vla.models.vq_test import GOLDEN, KEYS, META, golden_weight
from crane_x7_vla.robot import CRANE_X7


@pytest.fixture
def trained(tiny_statistics: DatasetStatistics) -> TrainedVQ:
    shape = VQShape(action_horizon=4, action_dim=8, n_latent=16, n_embed=8, n_groups=3)
    vq = ActionVQ(shape)
    random = torch.Generator().manual_seed(0)
    for book in vq.vq_embedding.codebooks():
        book.normal_(generator=random)
    units = VQUnits(
        joint_names=CRANE_X7.joint_names,
        action_form="relative",
        action_source="commanded",
        normalization="bounds_q99",
        span_floor=0.04,
    )
    return TrainedVQ(vq, units, tiny_statistics)


@pytest.fixture
def directory(trained: TrainedVQ, tmp_path: Path) -> Path:
    save_vq(trained, tmp_path)
    return tmp_path


def test_a_vq_comes_back_as_it_was_saved(trained: TrainedVQ, directory: Path) -> None:
    found = load_vq(directory)
    chunks = torch.rand(16, 4, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        codes = trained.vq.encode(chunks)
        assert torch.equal(found.vq.encode(chunks), codes)
        assert torch.equal(found.vq.decode(codes), trained.vq.decode(codes))
    assert found.units == trained.units
    assert found.statistics.fingerprint == trained.statistics.fingerprint
    assert not any(parameter.requires_grad for parameter in found.vq.parameters())


def test_its_config_has_the_published_names(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    published = {"input_dim_h": 4, "input_dim_w": 8, "n_latent_dims": 16, "vqvae_n_embed": 8, "vqvae_groups": 3}
    assert published.items() <= config.items()


def test_what_does_not_fit_is_one_line(directory: Path) -> None:
    config = directory / "config.json"
    written = json.loads(config.read_text())
    config.write_text(json.dumps({**written, "vqvae_groups": 4}))
    with pytest.raises(CheckpointError, match=r"1 missing: vq_embedding\.layers\.3\._codebook\.embed$"):
        load_vq(directory)
    config.write_text(json.dumps(written))
    weights = directory / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut off"):
        load_vq(directory)
    with pytest.raises(CheckpointError, match="train one with: python -m crane_x7_vla"):
        load_vq(directory / "none")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"n_latent_dims": "16"}, "n_latent_dims is '16'; expected a whole number"),
        ({"input_dim_h": True}, "input_dim_h is True; expected a whole number"),
        ({"vqvae_groups": 0}, "vqvae_groups is 0; expected 1 or more"),
        ({"joint_names": 3}, "joint_names is 3; expected a list"),
        ({"joint_names": ["a", 1]}, r"joint_names\[1\] is 1; expected text"),
        ({"action_form": 1}, "action_form is 1; expected text"),
        ({"span_floor": None}, "span_floor is None; expected a number"),
    ],
)
def test_a_damaged_config_is_named_with_its_key(directory: Path, setting: dict[str, object], said: str) -> None:
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | setting))
    with pytest.raises(CheckpointError, match=rf"config\.json: {said}"):
        load_vq(directory)


def test_a_vq_without_its_statistics_is_copied_again_and_not_given_others(directory: Path) -> None:
    (directory / "dataset_statistics.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks dataset_statistics\.json, .*; copy the VQ again, or train one"):
        load_vq(directory)


def test_a_published_vq_does_not_say_what_its_numbers_stand_for(directory: Path) -> None:
    config = directory / "config.json"
    written = json.loads(config.read_text())
    published = {key: value for key, value in written.items() if "dim" in key or key.startswith("vqvae")}
    config.write_text(json.dumps({**published, "input_dim_w": 7, "act_scale": 1.0}))
    with pytest.raises(CheckpointError, match="does not say what its 7 numbers stand for; train one"):
        load_vq(directory)


def published_parts() -> dict[str, dict[str, Any]]:
    """checkpoints/model.pt of vq_bet_official, with the weights of the golden file; the names are its own."""
    parts: dict[str, dict[str, Any]] = {"optimizer": {"state": {}, "param_groups": []}}
    for part, keys in KEYS.items():
        weights = {key: golden_weight(f"{part}.{key}", shape) for key, shape in keys.items() if shape}
        parts[part] = {**weights, **{key: torch.tensor(True) for key, shape in keys.items() if not shape}}
    return parts


def write_published(directory: Path, parts: dict[str, dict[str, Any]], units: dict[str, object]) -> None:
    (directory / "checkpoints").mkdir()
    torch.save(parts, directory / "checkpoints" / "model.pt")
    config = {
        "input_dim_h": META["horizon"],
        "input_dim_w": META["action_dim"],
        "n_latent_dims": META["n_latent"],
        "vqvae_n_embed": META["n_embed"],
        "vqvae_groups": META["n_groups"],
        "encoder_loss_multiplier": 1.0,
        "act_scale": 1.0,
        "eval": False,
        "device": "cuda",
        "load_dir": None,
    }
    (directory / "config.json").write_text(json.dumps(config | units))


def test_weights_of_the_published_script_give_its_codes(trained: TrainedVQ, tmp_path: Path) -> None:
    write_published(tmp_path, published_parts(), asdict(trained.units))
    (tmp_path / "dataset_statistics.json").write_text(to_json(trained.statistics))
    found = load_vq(tmp_path)
    with torch.inference_mode():
        codes = found.vq.encode(torch.from_numpy(GOLDEN["actions"]))
    assert np.array_equal(codes.numpy(), GOLDEN["codes"])


def test_weights_of_the_published_script_are_read_strictly(trained: TrainedVQ, tmp_path: Path) -> None:
    parts = published_parts()
    del parts["decoder"]["fc.bias"]
    parts["encoder"]["fc.scale"] = torch.zeros(1)
    parts["vq_embedding"]["layers.0._codebook.embed"] = torch.zeros(1, 3, 64)
    write_published(tmp_path, parts, asdict(trained.units))
    with pytest.raises(CheckpointError) as caught:
        load_vq(tmp_path)
    for part in (
        "1 missing: decoder.fc.bias",
        "1 unexpected: encoder.fc.scale",
        "1 of another shape: vq_embedding.layers.0._codebook.embed [1, 3, 64] instead of [1, 32, 64]",
    ):
        assert part in str(caught.value)
    del parts["decoder"]
    torch.save(parts, tmp_path / "checkpoints" / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt: decoder is not a dictionary of tensors"):
        load_vq(tmp_path)


def test_scaled_actions_are_not_read_as_plain_ones(trained: TrainedVQ, tmp_path: Path) -> None:
    write_published(tmp_path, published_parts(), {**asdict(trained.units), "act_scale": 10.0})
    with pytest.raises(CheckpointError, match=r"act_scale is 10\.0; only 1 is read"):
        load_vq(tmp_path)
