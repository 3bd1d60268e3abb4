"""Every backend of the table keeps the contract of ``base.py``, shown with its tiny() config."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from crane_x7_vla.backends import BACKENDS, backend_class, config_class
from crane_x7_vla.backends.base import Backend, Batch
from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.data.statistics import DatasetStatistics, compute_statistics
from crane_x7_vla.errors import CheckpointError, ConfigError, DataError
from crane_x7_vla.models import attention
from crane_x7_vla.models.decoder import DecoderLayer
from crane_x7_vla.models.vit import Block
from crane_x7_vla.robot import CRANE_X7, robot_spec
from crane_x7_vla.types import Observation

torch.set_num_threads(1)
RNG = np.random.default_rng(0)
TOKEN_BY_TOKEN = ("openvla", "minivla")
BLIND_TO_STATE = ("openvla", "minivla")


def observation(config: VLAConfig, *, instruction: str = "pick up the red cube", seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    state = rng.uniform(-0.3, 0.3, 8).astype(np.float32)
    return Observation(
        images={c.name: rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for c in config.cameras},
        state=state,
        commanded=state + np.float32(0.05),
        instruction=instruction,
        stamp=float(seed),
    )


def chunk(config: VLAConfig, answered: Observation, seed: int = 0) -> np.ndarray:
    """Absolute targets within 0.1 rad of the state, the gripper anywhere."""
    rng = np.random.default_rng(seed + 100)
    actions = answered.state + rng.uniform(-0.1, 0.1, (config.action_horizon, 8)).astype(np.float32)
    actions[:, 7] = rng.uniform(0, 0.6, config.action_horizon)
    return actions


@pytest.fixture(scope="module")
def statistics() -> DatasetStatistics:
    rows = RNG.uniform(-0.12, 0.12, (400, 8)).astype(np.float32)
    rows[:, 7] = RNG.uniform(-0.1, 0.7, 400)
    states = RNG.uniform(-0.4, 0.4, (200, 8)).astype(np.float32)
    return compute_statistics(states, rows, num_trajectories=4, fingerprint="test")


@pytest.fixture(params=list(BACKENDS))
def config(request: pytest.FixtureRequest) -> VLAConfig:
    tiny: VLAConfig = config_class(request.param).tiny()  # pyright: ignore[reportAttributeAccessIssue]
    return dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, action_source="commanded"))


Make = Callable[..., Backend]


@pytest.fixture
def make(statistics: DatasetStatistics) -> Make:
    def make_backend(config: VLAConfig, **options: Any) -> Backend:
        robot = robot_spec(config.robot)
        return backend_class(config.backend)(config, robot=robot, statistics=statistics, **options)

    return make_backend


def batch_of(backend: Backend, observations: Sequence[Observation], *, labels: bool = True) -> Batch:
    config = backend.config
    return backend.processor.collate(
        [backend.processor.encode(o, chunk(config, o, seed) if labels else None) for seed, o in enumerate(observations)]
    )


def predict(backend: Backend, model: torch.nn.Module, observations: Sequence[Observation]) -> np.ndarray:
    with torch.inference_mode():
        batch = batch_of(backend, observations, labels=False)
        return backend.processor.decode(backend.predict(model.eval(), batch), observations)


def moved_by_noise(backend: Any, model: torch.nn.Module, batch: Batch) -> list[float]:
    """How far ``comparable`` moves when a little noise is added to every weight, and more of it."""
    moved: list[float] = []
    with torch.inference_mode():
        before = backend.comparable(model, batch)
        assert before.shape == (1, backend.spec.action_horizon, CRANE_X7.size)
        for size in (1e-5, 1e-3):
            for index, parameter in enumerate(model.parameters()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
                parameter.add_(noise, alpha=size)
            moved.append(float((backend.comparable(model, batch) - before).abs().max()))
    return moved


def test_encode_is_the_same_with_and_without_labels(config: VLAConfig, make: Make) -> None:
    processor, seen = make(config).processor, observation(config)
    with_labels = processor.encode(seen, chunk(config, seen))
    without = processor.encode(seen)
    assert set(with_labels) > set(without)
    for name, value in without.items():
        assert torch.equal(value, with_labels[name]), name


def test_augmentation_changes_images_only_and_only_with_a_generator(config: VLAConfig, make: Make) -> None:
    processor, seen = make(config).processor, observation(config)
    plain = processor.encode(seen)
    first, again = (processor.encode(seen, rng=np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert not torch.equal(first["pixel_values"], plain["pixel_values"])
    assert all(torch.equal(first[name], plain[name]) for name in plain if name != "pixel_values")


@pytest.mark.parametrize("form", ["relative", "absolute"])
@pytest.mark.parametrize("normalization", ["bounds_q99", "bounds", "zscore"])
def test_decode_inverts_the_labels(
    config: VLAConfig, make: Make, form: str, normalization: str, statistics: DatasetStatistics
) -> None:
    block = dataclasses.replace(getattr(config, config.block), action_form=form, normalization=normalization)
    backend = make(dataclasses.replace(config, **{config.block: block}))
    seen = [observation(config, seed=seed) for seed in range(3)]
    actions = np.stack([chunk(config, o, seed) for seed, o in enumerate(seen)])
    if form == "absolute":  # within the statistics, which are of small numbers here
        actions = np.clip(actions, statistics.action.q01, statistics.action.q99)
    batch = backend.processor.collate([backend.processor.encode(o, a) for o, a in zip(seen, actions, strict=True)])
    np.testing.assert_allclose(backend.processor.decode(batch["labels"], seen), actions, atol=1e-5)


def test_next_states_are_added_to_the_target_in_force(config: VLAConfig, make: Make) -> None:
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, action_source="next_state"))
    processor, seen = make(config).processor, observation(config)
    batch = processor.collate([processor.encode(seen, chunk(config, seen))])
    expected = chunk(config, seen)
    expected[:, :7] += 0.05
    np.testing.assert_allclose(processor.decode(batch["labels"], [seen])[0], expected, atol=1e-5)
    with pytest.raises(DataError, match="no commanded target"):
        processor.decode(batch["labels"], [dataclasses.replace(seen, commanded=None)])


def test_an_undecided_action_source_is_an_error_not_a_guess(config: VLAConfig, make: Make) -> None:
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, action_source="auto"))
    processor, seen = make(config).processor, observation(config)
    batch = processor.collate([processor.encode(seen, chunk(config, seen))])
    with pytest.raises(ConfigError, match="action_source is still auto"):
        processor.decode(batch["labels"], [seen])


def test_the_loss_is_finite_and_falls_on_a_repeated_batch(config: VLAConfig, make: Make) -> None:
    backend = make(config)
    model = backend.build().train()
    batch = batch_of(backend, [observation(config, seed=seed) for seed in range(2)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = backend.loss(model, batch)
        loss.value.backward()
        optimizer.step()
        losses.append(float(loss.value.detach()))
        assert all(torch.isfinite(metric) and not metric.requires_grad for metric in loss.metrics.values())
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.6 * losses[0]


def test_every_trained_parameter_gets_a_gradient(config: VLAConfig, make: Make) -> None:
    backend = make(config)
    model = backend.build().train()
    backend.loss(model, batch_of(backend, [observation(config)])).value.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_padded_rows_do_not_count(config: VLAConfig, make: Make) -> None:
    backend = make(config)
    model, seen = backend.build().eval(), observation(config)
    is_pad = np.arange(config.action_horizon) >= 2
    actions, spoilt = chunk(config, seen), chunk(config, seen)
    spoilt[2:] += 0.05
    with torch.inference_mode():
        first, second = (
            backend.loss(model, backend.processor.collate([backend.processor.encode(seen, a, is_pad=is_pad)]))
            for a in (actions, spoilt)
        )
    assert float(first.value) == float(second.value)
    assert {k: float(v) for k, v in first.metrics.items()} == {k: float(v) for k, v in second.metrics.items()}


def test_action_l1_rad_is_the_error_of_the_decoded_targets(config: VLAConfig, make: Make) -> None:
    backend = make(config)
    if config.backend in TOKEN_BY_TOKEN:
        pytest.skip("in training it reads the true tokens before each one")
    model = backend.build().eval()
    seen = [observation(config, seed=seed) for seed in range(3)]
    targets = np.stack([chunk(config, o, seed) for seed, o in enumerate(seen)])
    with torch.inference_mode():
        reported = backend.loss(model, batch_of(backend, seen)).metrics["action_l1_rad"]
    assert float(reported) == pytest.approx(float(np.abs(predict(backend, model, seen) - targets).mean()), rel=1e-3)


def test_a_prediction_is_the_same_alone_and_in_a_batch_of_other_prompts(config: VLAConfig, make: Make) -> None:
    backend = make(config)
    model = backend.build()
    seen = [observation(config), observation(config, instruction="Put the small green cube into the box", seed=1)]
    together = predict(backend, model, seen)
    alone = np.concatenate([predict(backend, model, [o]) for o in seen])
    assert together.shape == (2, backend.spec.action_horizon, CRANE_X7.size)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_numbers_keep_to_what_tokens_can_say_with_each_normalization(config: VLAConfig) -> None:
    if config.backend not in TOKEN_BY_TOKEN:
        pytest.skip("its head says any number")
    rng = np.random.default_rng(3)
    rows, states = (rng.normal(scale=0.05, size=(2000, 8)).astype(np.float32) for _ in range(2))
    normal = compute_statistics(states, rows, num_trajectories=4, fingerprint="test")
    seen = observation(config)
    for normalization in ("bounds_q99", "bounds", "zscore"):
        block = dataclasses.replace(getattr(config, config.block), normalization=normalization)
        changed = dataclasses.replace(config, **{config.block: block})
        backend = backend_class(config.backend)(changed, robot=CRANE_X7, statistics=normal)
        anchor = np.append(seen.state[:7], np.float32(0))
        batch = backend.processor.collate([backend.processor.encode(seen, anchor + row[None]) for row in rows[:200]])
        said = backend.processor.decode(backend.tokens.values(backend.tokens.ids(batch["labels"])), [seen] * 200)
        assert np.abs(said[:, 0] - anchor - rows[:200]).mean() < 0.004, normalization


def test_what_models_are_compared_by_follows_their_weights_without_jumps(config: VLAConfig, make: Make) -> None:
    backend = make(config)
    model = backend.build().eval()
    batch = batch_of(backend, [observation(config)], labels=False)
    little, more = moved_by_noise(backend, model, batch)
    assert 0 < little < 3e-3
    assert more > 10 * little


@pytest.mark.parametrize("enabled", [True, False])
def test_every_attention_heeds_whether_it_may_take_the_flash_kernel(
    config: VLAConfig, make: Make, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = dataclasses.replace(getattr(config, config.block), use_flash_attention=enabled)
    backend = make(dataclasses.replace(config, **{config.block: block}))
    asked: list[bool] = []

    def kernels(device: torch.device, *, flash: bool) -> contextlib.AbstractContextManager[None]:
        asked.append(flash)
        return contextlib.nullcontext()

    monkeypatch.setattr(attention, "kernels", kernels)
    model = backend.build()
    predict(backend, model, [observation(config)])
    layers = sum(isinstance(module, Block | DecoderLayer) for module in model.modules())
    assert len(asked) >= layers
    assert set(asked) == {enabled}


def test_what_is_made_for_inference_predicts_the_same_in_half_precision_too(config: VLAConfig, make: Make) -> None:
    backend = make(config)
    model = backend.build().eval()
    batch = batch_of(backend, [observation(config)], labels=False)
    with torch.inference_mode():
        expected = backend.comparable(model, batch)
        fast = backend.for_inference(model)
        np.testing.assert_allclose(backend.comparable(fast, batch), expected, atol=1e-5)
        half = fast.to(torch.bfloat16)
        values = backend.comparable(half, batch).float()
        assert backend.predict(half, batch).shape == expected.shape
    assert 0 < float((values - expected).abs().max()) < 0.05


def test_every_input_matters(config: VLAConfig, make: Make) -> None:
    backend = make(config)
    model, seen = backend.build().eval(), observation(config)
    labels = backend.processor.encode(seen, chunk(config, seen))

    def loss(changed: Observation) -> float:
        """Of what the model makes of an observation, against the same labels."""
        sample = {**labels, **backend.processor.encode(changed)}
        with torch.inference_mode():
            return float(backend.loss(model, backend.processor.collate([sample])).value)

    reference = loss(seen)
    for camera in (c.name for c in backend.spec.cameras):
        images = {**seen.images, camera: 255 - seen.images[camera]}
        assert abs(loss(dataclasses.replace(seen, images=images)) - reference) > 1e-6
    assert abs(loss(dataclasses.replace(seen, instruction="pick up the blue ball")) - reference) > 1e-6
    moved = loss(dataclasses.replace(seen, state=seen.state + np.float32(0.2)))
    assert (abs(moved - reference) > 1e-6) == (config.backend not in BLIND_TO_STATE)


def test_saving_restoring_and_predicting_is_equal(config: VLAConfig, make: Make, tmp_path: Path) -> None:
    backend = make(config)
    model, seen = backend.build(), [observation(config)]
    backend.save(model, tmp_path)
    elsewhere = make(config, directory=tmp_path)
    restored = elsewhere.restore(tmp_path)
    np.testing.assert_array_equal(predict(elsewhere, restored, seen), predict(backend, model, seen))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in restored.named_parameters() if p.requires_grad} == trainable


def test_the_same_seed_builds_the_same_model(config: VLAConfig, make: Make) -> None:
    torch.manual_seed(5)
    first = make(config).build().state_dict()
    torch.manual_seed(6)
    second = make(config).build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_base_with_another_kind_of_language_model_is_refused(config: VLAConfig, make: Make, tmp_path: Path) -> None:
    other: Any = config_class("openvla" if config.backend == "minivla" else "minivla")
    base = make(other.tiny())
    base.save(base.build(), tmp_path)
    block = dataclasses.replace(getattr(config, config.block), model_id=str(tmp_path), use_lora=True)
    with pytest.raises(
        ConfigError, match=rf"{config.backend} is built on \w+, but the language model of {tmp_path} is"
    ):
        make(dataclasses.replace(config, **{config.block: block}))


def test_a_quantized_base_is_refused(config: VLAConfig, make: Make, tmp_path: Path) -> None:
    whole = make(config)
    whole.save(whole.build(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["projector.fc1.weight"] = weights["projector.fc1.weight"].to(torch.int8)
    save_file(weights, tmp_path / "model.safetensors")
    block = dataclasses.replace(getattr(config, config.block), model_id=str(tmp_path), use_lora=True)
    backend = make(dataclasses.replace(config, **{config.block: block}))
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: projector\.fc1\.weight is int8; expected bfloat16"):
        backend.build()


def test_a_checkpoint_of_adapters_is_no_base(config: VLAConfig, make: Make, tmp_path: Path) -> None:
    base, checkpoint = tmp_path / "base", tmp_path / "outputs" / "red_cube" / "checkpoint-1"
    base.mkdir()
    checkpoint.mkdir(parents=True)
    whole = make(config)
    whole.save(whole.build(), base)

    def on(model_id: Path) -> VLAConfig:
        block = dataclasses.replace(getattr(config, config.block), model_id=str(model_id), use_lora=True)
        return dataclasses.replace(config, **{config.block: block})

    backend = make(on(base))
    backend.save(backend.build(), checkpoint)
    for directory in (checkpoint, checkpoint / "lora_adapters"):
        with pytest.raises(
            CheckpointError, match=rf"{directory} holds adapters, no model; merge first with: .*_merged"
        ):
            make(on(directory))


def test_a_missing_camera_is_named(config: VLAConfig, make: Make) -> None:
    processor, seen = make(config).processor, observation(config)
    camera = config.cameras[-1].name
    images = {name: image for name, image in seen.images.items() if name != camera}
    with pytest.raises(DataError, match=f"no image of camera {camera}"):
        processor.encode(dataclasses.replace(seen, images=images))


def test_an_instruction_without_end_is_refused(config: VLAConfig, make: Make) -> None:
    with pytest.raises(DataError, match="the instruction has 100000 characters; expected a sentence of at most"):
        make(config).processor.encode(observation(config, instruction="a" * 100_000))


def test_a_camera_of_another_shape_than_in_training_names_both(config: VLAConfig, make: Make) -> None:
    cameras = tuple(dataclasses.replace(camera, width=640, height=480) for camera in config.data.cameras)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cameras=cameras))
    processor, seen = make(config).processor, observation(config)
    square = {name: np.zeros((48, 48, 3), np.uint8) for name in seen.images}
    with pytest.raises(DataError, match=r"camera \w+ shows 48 x 48 pixels, .* trained on 640 x 480"):
        processor.encode(dataclasses.replace(seen, images=square))
    smaller = {name: np.zeros((48, 64, 3), np.uint8) for name in seen.images}
    processor.encode(dataclasses.replace(seen, images=smaller))


def test_a_state_or_chunk_of_another_size_names_both_sizes(config: VLAConfig, make: Make) -> None:
    processor, seen = make(config).processor, observation(config)
    with pytest.raises(DataError, match=r"7 joints, crane_x7 has 8"):
        processor.encode(dataclasses.replace(seen, state=seen.state[:7], commanded=None))
    short = chunk(config, seen)[:-1]
    with pytest.raises(DataError, match=rf"\[{len(short)}, 8\]; expected \[{len(short) + 1}, 8\]"):
        processor.encode(seen, short)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_joint_whose_state_or_target_is_no_number_is_named(config: VLAConfig, make: Make, value: float) -> None:
    processor, seen = make(config).processor, observation(config)
    wrong = seen.state.copy()
    wrong[6] = value
    for field, what in (("state", "measured state"), ("commanded", "commanded target")):
        with pytest.raises(DataError, match=f"the {what} of crane_x7_wrist_joint is NaN or infinite"):
            processor.encode(dataclasses.replace(seen, **{field: wrong}))


def test_statistics_of_another_robot_name_both_sizes(config: VLAConfig) -> None:
    rows = RNG.normal(size=(20, 7)).astype(np.float32)
    seven = compute_statistics(rows, rows, num_trajectories=1, fingerprint="x")
    with pytest.raises(ValueError, match=r"statistics have 7 entries, crane_x7 has 8"):
        backend_class(config.backend)(config, robot=CRANE_X7, statistics=seven)
