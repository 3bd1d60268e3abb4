"""What is particular to the OpenVLA-OFT backend; contract_test.py has what all backends share."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from crane_x7_vla.backends.openvla_oft.backend import OpenVLAOFTBackend
from crane_x7_vla.backends.openvla_oft.config import (
    ActionHeadConfig,
    FilmConfig,
    MultiImageConfig,
    OpenVLAOFTConfig,
    OpenVLAOFTSpecificConfig,
)
from crane_x7_vla.checkpoints.architecture import architecture, trunk_config
from crane_x7_vla.checkpoints.layouts import (
    Assets,
    default_normalizations,
    is_film,
    save_tensors,
    weight_files,
    write_model,
)
from crane_x7_vla.checkpoints.lora import fold
from crane_x7_vla.checkpoints.tokenizer import small_tokenizer
from crane_x7_vla.config.base import CameraConfig, DataConfig
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.models.golden_test import GOLDEN, META, golden_weight
from crane_x7_vla.models.openvla_oft import OFTHeadConfig, new_components
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.types import Observation

torch.set_num_threads(1)


def test_a_head_that_does_not_fit_is_left_aside_with_a_warning_that_names_both_sizes(
    tiny_base: Path, tiny_statistics: DatasetStatistics, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = OpenVLAOFTConfig.tiny()
    config = dataclasses.replace(
        tiny,
        openvla_oft=dataclasses.replace(
            tiny.openvla_oft, model_id=str(tiny_base), action_head=ActionHeadConfig(hidden_dim=32)
        ),
    )
    with caplog.at_level(logging.WARNING):
        OpenVLAOFTBackend(config, robot=CRANE_X7, statistics=tiny_statistics).build()
    (said,) = caplog.messages
    assert "action_head of the base does not fit, model.fc1.weight is [64, 768] instead of [32, 768]" in said
    assert "trained anew" in said


def on_base(base: Path) -> OpenVLAOFTConfig:
    tiny = OpenVLAOFTConfig.tiny()
    return dataclasses.replace(tiny, openvla_oft=dataclasses.replace(tiny.openvla_oft, model_id=str(base)))


def for_seven(base: Path, folder: Path) -> Path:
    """A copy of ``base`` whose head and projector are for 7 numbers."""
    copy = Path(shutil.copytree(base, folder / "seven"))
    head = OFTHeadConfig(action_dim=7, action_horizon=4, hidden_dim=64, num_blocks=2, state_dim=7)
    trunk = trunk_config(architecture("tiny"), source="tiny")
    for name, part in new_components(trunk, head).items():
        save_tensors(copy / f"{name}.safetensors", part.state_dict())
    return copy


def test_parts_of_a_base_for_another_robot_are_left_aside_with_both_numbers(
    tiny_base: Path, tmp_path: Path, tiny_statistics: DatasetStatistics, caplog: pytest.LogCaptureFixture
) -> None:
    config = on_base(for_seven(tiny_base, tmp_path))
    with caplog.at_level(logging.WARNING):
        OpenVLAOFTBackend(config, robot=CRANE_X7, statistics=tiny_statistics).build()
    assert [said.partition(" (")[0] for said in caplog.messages] == [
        f"{name} of the base is for 7 numbers, crane_x7 has 8 joints" for name in ("action_head", "proprio_projector")
    ]
    assert all("safetensors); it is left aside and trained anew" in said for said in caplog.messages)


@pytest.mark.parametrize("name", ["action_head", "proprio_projector"])
def test_a_whole_model_for_another_robot_is_refused_with_both_numbers_and_the_part(
    name: str, tiny_base: Path, tmp_path: Path, tiny_statistics: DatasetStatistics
) -> None:
    directory = for_seven(tiny_base, tmp_path)
    for other in {"action_head", "proprio_projector"} - {name}:
        shutil.copy(tiny_base / f"{other}.safetensors", directory)
    backend = OpenVLAOFTBackend(
        OpenVLAOFTConfig.tiny(), robot=CRANE_X7, statistics=tiny_statistics, directory=directory
    )
    said = rf"{name}\.safetensors is for 7 numbers, crane_x7 has 8 joints; its {name} must be trained anew"
    with pytest.raises(CheckpointError, match=said):
        backend.restore(directory)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda state: state.pop("model.fc2.bias"), r"1 missing: model\.fc2\.bias"),
        (lambda state: state.update({"model.fc9.bias": torch.zeros(1)}), r"1 unexpected: model\.fc9\.bias"),
    ],
)
def test_a_damaged_part_of_the_base_is_an_error_and_not_a_random_one(
    spoil: Callable[[dict[str, torch.Tensor]], object],
    said: str,
    tiny_base: Path,
    tmp_path: Path,
    tiny_statistics: DatasetStatistics,
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    state = load_file(base / "action_head.safetensors")
    spoil(state)
    save_tensors(base / "action_head.safetensors", state)
    backend = OpenVLAOFTBackend(on_base(base), robot=CRANE_X7, statistics=tiny_statistics)
    with pytest.raises(CheckpointError, match=rf"action_head\.safetensors does not fit this model: {said}"):
        backend.build()


@pytest.mark.parametrize("normalization", ["bounds_q99", "bounds", "zscore"])
def test_clipped_is_measured_where_labels_are_clipped(
    normalization: str, tiny_statistics: DatasetStatistics, make_observation: Callable[[int], Observation]
) -> None:
    tiny = OpenVLAOFTConfig.tiny()
    settings = dataclasses.replace(tiny.openvla_oft, normalization=normalization)  # pyright: ignore[reportArgumentType]
    config = dataclasses.replace(tiny, openvla_oft=settings)
    backend = OpenVLAOFTBackend(config, robot=CRANE_X7, statistics=tiny_statistics)
    seen = make_observation(0)
    actions = np.repeat(seen.state[None], config.action_horizon, axis=0)
    batch = backend.processor.collate([backend.processor.encode(seen, actions)])
    with torch.inference_mode():
        metrics = backend.loss(backend.build().eval(), batch).metrics
    assert ("clipped" in metrics) == (normalization == "bounds_q99")


@pytest.mark.parametrize(
    ("cameras", "num_images", "todo"),
    [
        (
            ("primary", "wrist"),
            3,
            "For these: --cameras primary,wrist --multi-image-num-images 2; "
            "for 3: --cameras primary,wrist,NAME --multi-image-num-images 3",
        ),
        (
            ("side",),
            2,
            "For these: --cameras side --multi-image-num-images 1; "
            "for 2: --cameras side,primary --multi-image-num-images 2",
        ),
        (
            ("primary", "wrist"),
            1,
            "For these: --cameras primary,wrist --multi-image-num-images 2; "
            "for 1: --cameras primary --multi-image-num-images 1",
        ),
    ],
)
def test_a_number_of_images_that_is_not_that_of_the_cameras_names_both_and_both_ways_out(
    cameras: tuple[str, ...], num_images: int, todo: str
) -> None:
    with pytest.raises(ConfigError) as error:
        OpenVLAOFTConfig(
            data=DataConfig(cameras=tuple(CameraConfig(name=name) for name in cameras)),
            openvla_oft=OpenVLAOFTSpecificConfig(multi_image=MultiImageConfig(num_images=num_images)),
        )
    enabled = f"num_images is {num_images}, but data.cameras enables {len(cameras)} ({', '.join(cameras)})"
    assert str(error.value) == f"openvla_oft.multi_image.{enabled}. {todo}"


def with_film(*, count_padding: bool = False) -> OpenVLAOFTConfig:
    tiny = OpenVLAOFTConfig.tiny()
    film = FilmConfig(enabled=True, count_padding=count_padding)
    return dataclasses.replace(tiny, openvla_oft=dataclasses.replace(tiny.openvla_oft, film=film))


def film_layers(model: nn.Module) -> list[nn.Parameter]:
    """Scale and shift, weight and bias, of two blocks in two towers."""
    named = model.named_parameters()
    layers = [parameter for name, parameter in named if is_film(name.removeprefix("base_model.model."))]
    assert len(layers) == 2 * 2 * 2 * 2
    return layers


def test_film_changes_nothing_before_it_has_learnt_and_something_afterwards(
    tiny_statistics: DatasetStatistics, make_observation: Callable[[int], Observation]
) -> None:
    backend = OpenVLAOFTBackend(with_film(), robot=CRANE_X7, statistics=tiny_statistics)
    model = backend.bare(backend.build().eval())
    pixels = backend.processor.collate([backend.processor.encode(make_observation(0))])["pixel_values"]
    language = torch.randn(1, 96, generator=torch.Generator().manual_seed(0))
    layers = film_layers(model)
    with torch.inference_mode():
        seen = model.vision_backbone(pixels, language)
        assert torch.equal(seen, model.vision_backbone(pixels, 2 * language))
    with torch.no_grad():
        for layer in layers:
            layer.fill_(0.01)
        assert not torch.allclose(seen, model.vision_backbone(pixels, language), atol=1e-3)


@pytest.mark.parametrize("count_padding", [False, True])
def test_padding_is_part_of_the_instruction_only_in_training_and_only_where_asked(
    count_padding: bool, tiny_statistics: DatasetStatistics, make_observation: Callable[[int], Observation]
) -> None:
    config = with_film(count_padding=count_padding)
    backend = OpenVLAOFTBackend(config, robot=CRANE_X7, statistics=tiny_statistics)
    model = backend.build()
    with torch.no_grad():
        for layer in film_layers(model):
            layer.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    seen = [make_observation(0), dataclasses.replace(make_observation(1), instruction="put the cube into the box " * 9)]
    encoded = [backend.processor.encode(observation) for observation in seen]
    for mode, same in (("eval", True), ("train", not count_padding)):
        model.train(mode == "train")
        with torch.inference_mode():
            together = backend.predict(model, backend.processor.collate(encoded))[:1]
            alone = backend.predict(model, backend.processor.collate(encoded[:1]))
        assert (float((together - alone).abs().max()) < 1e-5) == same, mode


def test_adapters_and_film_are_saved_merged_and_restored(
    tiny_base: Path, tmp_path: Path, tiny_statistics: DatasetStatistics, make_observation: Callable[[int], Observation]
) -> None:
    config = with_film()
    settings = dataclasses.replace(config.openvla_oft, model_id=str(tiny_base), use_lora=True)
    config = dataclasses.replace(config, openvla_oft=settings)

    def backend(directory: Path | None = None) -> OpenVLAOFTBackend:
        return OpenVLAOFTBackend(config, robot=CRANE_X7, statistics=tiny_statistics, directory=directory)

    def predict(made: OpenVLAOFTBackend, model: nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return made.predict(model.eval(), made.processor.collate([made.processor.encode(make_observation(0))]))

    trained = backend()
    model = trained.build()
    with torch.no_grad():
        for layer in film_layers(model):
            assert layer.requires_grad
            layer.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    expected = predict(trained, model)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "merged").mkdir()
    trained.save(model, tmp_path / "checkpoint")
    restoring = backend()
    restored = restoring.restore(tmp_path / "checkpoint")
    torch.testing.assert_close(predict(restoring, restored), expected)
    merged, _ = fold(restored, dtype=None)
    restoring.save(merged, tmp_path / "merged")
    assert (tmp_path / "merged" / "film.safetensors").is_file()
    assert not any(is_film(key) for key in weight_files(tmp_path / "merged"))
    whole = backend(tmp_path / "merged")
    torch.testing.assert_close(predict(whole, whole.restore(tmp_path / "merged")), expected)
    (tmp_path / "merged" / "film.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks film\.safetensors; .* switch it off in its config\.yaml"):
        whole.restore(tmp_path / "merged")


@pytest.mark.parametrize("film", [False, True])
def test_a_published_run_gives_the_reference_actions(
    film: bool, tmp_path: Path, tiny_statistics: DatasetStatistics
) -> None:
    """Model files, component files and the whole vision backbone as openvla-oft writes them, with its own weights."""
    kind = "film" if film else "plain"
    keys: dict[str, list[int]] = json.loads(str(GOLDEN[f"{kind}_keys"]))
    weights = {key: golden_weight(key, tuple(shape)) for key, shape in keys.items()}
    if film:
        own = "vision_backbone."
        vision = {key.removeprefix(own): weights.pop(key) for key in keys if key.startswith(own)}
        torch.save(vision, tmp_path / "vision_backbone--latest_checkpoint.pt")
        before = json.loads(str(GOLDEN["plain_keys"]))
        weights |= {key: torch.zeros(shape) for key, shape in before.items() if key.startswith(own)}
    for name, part in (("action_head", "head_keys"), ("proprio_projector", "proprio_keys")):
        shapes: dict[str, list[int]] = json.loads(str(GOLDEN[part]))
        state = {f"module.{key}": golden_weight(f"{name}/{key}", tuple(shape)) for key, shape in shapes.items()}
        torch.save(state, tmp_path / f"{name}--latest_checkpoint.pt")
    towers = [dict(zip(("embed_dim", "depth", "num_heads"), META[name], strict=True)) for name in ("dino", "siglip")]
    published = {
        **architecture("openvla-7b"),
        "image_sizes": [META["image_size"]] * 2,
        "text_config": META["text_config"],
        "timm_model_kwargs": towers,
    }
    write_model(
        tmp_path, tensors=weights, assets=Assets(published, small_tokenizer(), default_normalizations(len(towers)))
    )
    settings = OpenVLAOFTSpecificConfig(
        model_id=str(tmp_path),
        use_lora=False,
        action_horizon=META["chunk"],
        film=FilmConfig(enabled=film),
        action_head=ActionHeadConfig(hidden_dim=64),
    )
    config = dataclasses.replace(OpenVLAOFTConfig.tiny(), openvla_oft=settings)
    backend = OpenVLAOFTBackend(config, robot=CRANE_X7, statistics=tiny_statistics)
    slots = META["chunk"] * META["action_dim"]
    batch = {
        "pixel_values": torch.from_numpy(GOLDEN["pixel_values"]),
        "input_ids": torch.cat(
            [torch.from_numpy(GOLDEN["input_ids"]), torch.ones(1, slots, dtype=torch.long), torch.tensor([[2]])], dim=1
        ),
        "prompt_length": torch.tensor([GOLDEN["input_ids"].shape[1]]),
        "proprio": torch.from_numpy(GOLDEN["proprio"])[None],
    }
    with torch.inference_mode():
        normalised = backend.predict(backend.build().eval(), batch)[0].numpy()
    stats = META["norm_stats"]["crane_x7"]["action"]
    low, high = np.float32(stats["q01"]), np.float32(stats["q99"])
    actions, expected = 0.5 * (normalised + 1) * (high - low + 1e-8) + low, GOLDEN[f"{kind}_actions"]
    assert np.abs(actions - expected).max() < 2e-4 * np.abs(expected).max()
