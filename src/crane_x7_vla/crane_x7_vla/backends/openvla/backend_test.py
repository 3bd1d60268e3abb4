"""What is particular to the OpenVLA backend; contract_test.py has what all backends share."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from crane_x7_vla.backends.openvla.backend import OpenVLABackend
from crane_x7_vla.backends.openvla.config import OpenVLAConfig
from crane_x7_vla.backends.restoring import restore_backend
from crane_x7_vla.checkpoints import layouts
from crane_x7_vla.checkpoints.architecture import ARCHITECTURES
from crane_x7_vla.checkpoints.tokenizer import small_tokenizer
from crane_x7_vla.data.statistics import DatasetStatistics, NormStats, norm_stats
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.models.golden_test import DEAD, OPENVLA, OPENVLA_META, golden_weight
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.transforms.prompt import SMALL_EMPTY_TOKEN_ID
from crane_x7_vla.types import Observation

torch.set_num_threads(1)


def tiny(**changes: object) -> OpenVLAConfig:
    """tiny(), trained on commanded targets, with other settings in its block."""
    config = OpenVLAConfig.tiny()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, action_source="commanded"),
        openvla=dataclasses.replace(config.openvla, **changes),  # pyright: ignore[reportArgumentType]
    )


@pytest.fixture(scope="module")
def published_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as the reference would write the golden model: every published weight, dead ones too."""
    directory = tmp_path_factory.mktemp("published")
    towers = [
        dict(zip(("embed_dim", "depth", "num_heads"), OPENVLA_META[name], strict=True)) for name in ("dino", "siglip")
    ]
    assets = layouts.Assets(
        {
            **ARCHITECTURES["openvla-7b"],
            "image_sizes": [OPENVLA_META["image_size"]] * 2,
            "text_config": OPENVLA_META["text_config"],
            "timm_model_kwargs": towers,
        },
        small_tokenizer(),
        layouts.default_normalizations(2),
    )
    keys = json.loads(str(OPENVLA["keys"]))
    tensors = {key: golden_weight(key, tuple(shape)) for key, shape in keys.items()}
    layouts.write_model(directory, tensors=tensors, assets=assets)
    return directory


def openvla_base(folder: Path, statistics: DatasetStatistics) -> Path:
    """A tiny base model in ``folder``."""
    base = folder / "base"
    base.mkdir()
    backend = OpenVLABackend(tiny(), robot=CRANE_X7, statistics=statistics)
    backend.save(backend.build(), base)
    return base


def published_statistics() -> DatasetStatistics:
    stats = OPENVLA_META["norm_stats"]["crane_x7"]["action"]
    low, high = (np.array(stats[name], dtype=np.float32) for name in ("q01", "q99"))
    action = NormStats(
        mean=(low + high) / 2, std=high - low, min=low, max=high, q01=low, q99=high, mask=np.array(stats["mask"])
    )
    state = norm_stats(np.eye(8, dtype=np.float32))
    return DatasetStatistics(action=action, state=state, num_transitions=1, num_trajectories=1, fingerprint="")


@pytest.mark.parametrize(("strict_reference", "expected"), [(True, "actions"), (False, "actions_from_action_tokens")])
def test_a_published_model_gives_the_actions_of_the_reference(
    published_model: Path,
    strict_reference: bool,
    expected: str,
    make_observation: Callable[[int], Observation],
) -> None:
    config = tiny(
        model_id=str(published_model),
        architecture="openvla-7b",
        action_tokenization_bins=256,
        empty_token_id=29871,
        action_form="absolute",
        strict_reference=strict_reference,
    )
    backend = OpenVLABackend(config, robot=CRANE_X7, statistics=published_statistics())
    batch = {name: torch.from_numpy(OPENVLA[name]) for name in ("pixel_values", "input_ids")}
    assert int(batch["input_ids"][0, -1]) == config.openvla.empty_token_id
    with torch.inference_mode():
        prediction = backend.predict(backend.build().eval(), batch)
    decoded = backend.processor.decode(prediction, [make_observation(0)])
    np.testing.assert_allclose(decoded[0, 0], OPENVLA[expected], atol=1e-6)


def learnt(backend: OpenVLABackend, seen: list[Observation], actions: list[np.ndarray]) -> tuple[nn.Module, dict]:
    """A model that has learnt the answers to a few observations, and the metrics of its last loss."""
    model = backend.build().train()
    encode = backend.processor.encode
    batch = backend.processor.collate([encode(o, a) for o, a in zip(seen, actions, strict=True)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(80):
        optimizer.zero_grad()
        backend.loss(model, batch).value.backward()
        optimizer.step()
    with torch.inference_mode():
        return model.eval(), dict(backend.loss(model, batch).metrics)


def test_learnt_actions_come_back_to_within_half_a_bin(
    tiny_statistics: DatasetStatistics, make_observation: Callable[[int], Observation]
) -> None:
    backend = OpenVLABackend(tiny(), robot=CRANE_X7, statistics=tiny_statistics)
    seen = [make_observation(0), dataclasses.replace(make_observation(1), instruction="put it back")]
    rng = np.random.default_rng(0)
    actions = [o.state[None] + rng.uniform(-0.1, 0.1, (1, 8)).astype(np.float32) for o in seen]
    for recorded in actions:  # the gripper is absolute, and its statistics are of small numbers here
        recorded[:, 7] = rng.uniform(-0.1, 0.1)
    model, metrics = learnt(backend, seen, actions)
    assert float(metrics["token_accuracy"]) == 1
    with torch.inference_mode():
        batch = backend.processor.collate([backend.processor.encode(o) for o in seen])
        decoded = backend.processor.decode(backend.predict(model, batch), seen)
    error = np.abs(decoded - np.stack(actions))
    half_bin = backend.processor.units.action_range.half_span / (backend.config.openvla.action_tokenization_bins - 1)
    assert (error <= half_bin + 1e-6).all()
    assert float(metrics["action_l1_rad"]) == pytest.approx(float(error.mean()), rel=1e-3)


def test_the_prompt_ends_with_the_empty_token_once(
    tiny_statistics: DatasetStatistics, make_observation: Callable[[int], Observation]
) -> None:
    seen = make_observation(0)
    for prompt in ("do {instruction}", "do {instruction} ▁"):
        backend = OpenVLABackend(tiny(prompt=prompt), robot=CRANE_X7, statistics=tiny_statistics)
        ids = backend.processor.encode(seen)["input_ids"].tolist()
        assert ids[0] == 1
        assert ids[-1] == SMALL_EMPTY_TOKEN_ID
        assert ids.count(SMALL_EMPTY_TOKEN_ID) == 1


def test_adapters_of_the_output_matrix_count_and_are_restored(
    tmp_path: Path, tiny_statistics: DatasetStatistics, make_observation: Callable[[int], Observation]
) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    config = tiny(model_id=str(openvla_base(tmp_path, tiny_statistics)), use_lora=True)

    def make() -> OpenVLABackend:
        return OpenVLABackend(config, robot=CRANE_X7, statistics=tiny_statistics)

    backend, seen = make(), [make_observation(0)]
    model = backend.build().eval()
    batch = backend.processor.collate([backend.processor.encode(o) for o in seen])
    with torch.inference_mode():
        before = backend.predict(model, batch)
        for name, parameter in model.named_parameters():
            if "lm_head.lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        after = backend.predict(model, batch)
    assert not torch.equal(before, after)
    backend.save(model, checkpoint)
    saved = load_file(checkpoint / "lora_adapters" / "adapter_model.safetensors")
    assert "base_model.model.language_model.lm_head.lora_B.weight" in saved
    with torch.inference_mode():
        torch.testing.assert_close(backend.predict(make().restore(checkpoint).eval(), batch), after, rtol=0, atol=0)


def test_a_checkpoint_may_hold_the_merged_model_too(
    tmp_path: Path, tiny_statistics: DatasetStatistics, make_observation: Callable[[int], Observation]
) -> None:
    config = tiny(model_id=str(openvla_base(tmp_path, tiny_statistics)), use_lora=True, skip_merge_on_save=False)
    backend = OpenVLABackend(config, robot=CRANE_X7, statistics=tiny_statistics)
    model = backend.build().eval()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            if ".lora_B." in name:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
                parameter.add_(noise, alpha=0.05)
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    backend.save(model, checkpoint)
    batch = backend.processor.collate([backend.processor.encode(make_observation(0))])
    merged, restored = restore_backend(checkpoint / "merged")
    with torch.inference_mode():
        expected = backend.comparable(model, batch)
        torch.testing.assert_close(merged.comparable(restored.eval(), batch), expected, rtol=0, atol=1e-5)


def test_a_whole_model_has_the_published_names_shapes_and_files(published_model: Path, tmp_path: Path) -> None:
    backend = OpenVLABackend(
        tiny(
            model_id=str(published_model), architecture="openvla-7b", action_tokenization_bins=256,
            empty_token_id=29871, use_lora=False,
        ),
        robot=CRANE_X7, statistics=published_statistics(),
    )  # fmt: skip
    backend.save(backend.build(), tmp_path)
    published = json.loads(str(OPENVLA["keys"]))
    written, base = (load_file(folder / "model.safetensors") for folder in (tmp_path, published_model))
    assert {key: list(value.shape) for key, value in written.items()} == published
    assert all(torch.equal(written[key], base[key]) for key in published if re.fullmatch(DEAD, key))
    config = json.loads((tmp_path / "config.json").read_text())
    original = json.loads((published_model / "config.json").read_text())
    assert {key: config[key] for key in original if key != "torch_dtype"} == {
        key: value for key, value in original.items() if key != "torch_dtype"
    }
    assert (
        config["norm_stats"]["crane_x7"]["action"]["mask"] == OPENVLA_META["norm_stats"]["crane_x7"]["action"]["mask"]
    )
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"}


def test_action_tokens_that_reach_special_ones_are_refused(tiny_statistics: DatasetStatistics) -> None:
    with pytest.raises(ConfigError, match=r"bins is 256: .* include token 3, .*expected at most 252"):
        OpenVLABackend(tiny(action_tokenization_bins=256), robot=CRANE_X7, statistics=tiny_statistics)


def test_tokens_that_the_base_does_not_have_are_named_before_their_number_is_reckoned_with(
    tiny_statistics: DatasetStatistics,
) -> None:
    with pytest.raises(ConfigError, match=r"openvla\.empty_token_id is 29871, but the base model's vocabulary has"):
        OpenVLABackend(tiny(empty_token_id=29871), robot=CRANE_X7, statistics=tiny_statistics)


def test_statistics_of_another_robot_are_left_aside_and_that_is_said(
    tmp_path: Path, tiny_statistics: DatasetStatistics, caplog: pytest.LogCaptureFixture
) -> None:
    base = openvla_base(tmp_path, tiny_statistics)
    config = json.loads((base / "config.json").read_text())
    names = ("bridge_orig", "fractal20220817_data", "kuka", "toto", "viola")
    config["norm_stats"] = {name: {"action": {"mean": [0.0] * 7}, "proprio": {"mean": [0.0] * 7}} for name in names}
    (base / "config.json").write_text(json.dumps(config))
    backend = OpenVLABackend(tiny(model_id=str(base)), robot=CRANE_X7, statistics=tiny_statistics)
    with caplog.at_level(logging.INFO):
        backend.build()
    (said,) = (message for message in caplog.messages if "statistics" in message)
    assert "bridge_orig with 7 numbers, fractal20220817_data with 7 numbers, kuka with 7 numbers and 2 more" in said
    assert "left aside" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_target": ("foo_proj",)}, r"openvla\.lora_target names 'foo_proj', .*names among: .*, lm_head, o_proj"),
        ({"trained_modules": ("nothing",)}, r"openvla\.trained_modules names 'nothing', which no part"),
    ],
)
def test_names_that_fit_nothing_are_refused_before_a_weight_is_read(
    changes: dict,
    message: str,
    tiny_statistics: DatasetStatistics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("weights were read")

    config = tiny(model_id=str(openvla_base(tmp_path, tiny_statistics)), use_lora=True, **changes)
    monkeypatch.setattr("crane_x7_vla.backends.prismatic_backend.read_trunk", fail)
    with pytest.raises(ConfigError, match=message):
        OpenVLABackend(config, robot=CRANE_X7, statistics=tiny_statistics).build()
