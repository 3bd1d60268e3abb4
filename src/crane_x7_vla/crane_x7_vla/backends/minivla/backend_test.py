"""What is particular to the MiniVLA backend; contract_test.py has what all backends share."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from crane_x7_vla.backends.contract_test import moved_by_noise
from crane_x7_vla.backends.minivla.backend import MiniVLABackend
from crane_x7_vla.backends.minivla.config import MiniVLAConfig, VQConfig
from crane_x7_vla.backends.minivla.vq import vq_shape, vq_units
from crane_x7_vla.checkpoints.published_test import QWEN_VLM, qwen_parts, shrink_base_vlms, write_native
from crane_x7_vla.checkpoints.tokenizer import small_chat_tokenizer
from crane_x7_vla.checkpoints.vq import TrainedVQ, save_vq
from crane_x7_vla.config.yaml import dump_config
from crane_x7_vla.data.statistics import DatasetStatistics, compute_statistics, to_json
from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.models.vq import VQShape
from crane_x7_vla.policies.policy import load_policy
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.scripts.merge_lora import merge
from crane_x7_vla.training.vq_fit import FitSettings, fit
from crane_x7_vla.types import Observation

torch.set_num_threads(1)
VQ = VQConfig(action_horizon=4, n_embed=16, n_latent=16, n_groups=3)
MakeObservation = Callable[[int], Observation]


def tiny(vq: VQConfig = VQ, **changes: object) -> MiniVLAConfig:
    """tiny() with a VQ, trained on commanded targets, with other settings in its block."""
    config = MiniVLAConfig.tiny()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, action_source="commanded"),
        minivla=dataclasses.replace(config.minivla, vq=vq, **changes),  # pyright: ignore[reportArgumentType]
    )


def chunks(n: int) -> torch.Tensor:
    """Straight motions in model units."""
    random = torch.Generator().manual_seed(0)
    return (torch.rand(n, 1, 8, generator=random) * 2 - 1) * torch.linspace(0.25, 1, 4)[:, None]


@pytest.fixture(scope="module")
def trained(tiny_statistics: DatasetStatistics) -> TrainedVQ:
    settings = FitSettings(steps=300, batch_size=16, learning_rate=3e-3, seed=0)
    vq = fit(chunks(16), vq_shape(tiny(), CRANE_X7), settings, report=lambda *_: None)
    return TrainedVQ(vq, vq_units(tiny(), CRANE_X7), tiny_statistics)


@pytest.fixture(scope="module")
def vq_directory(trained: TrainedVQ, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vq")
    save_vq(trained, directory)
    return directory


@pytest.fixture
def config(vq_directory: Path) -> MiniVLAConfig:
    return tiny(dataclasses.replace(VQ, path=str(vq_directory)))


def make(config: MiniVLAConfig, statistics: DatasetStatistics, directory: Path | None = None) -> MiniVLABackend:
    return MiniVLABackend(config, robot=CRANE_X7, statistics=statistics, directory=directory)


def test_learnt_chunks_come_back_to_within_the_error_of_the_vq(
    config: MiniVLAConfig, trained: TrainedVQ, tiny_statistics: DatasetStatistics, make_observation: MakeObservation
) -> None:
    backend = make(config, tiny_statistics)
    seen = [make_observation(0), dataclasses.replace(make_observation(1), instruction="put it back")]
    actions = backend.processor.decode(chunks(16)[:2], seen)
    model = backend.build().train()
    encode = backend.processor.encode
    batch = backend.processor.collate([encode(o, a) for o, a in zip(seen, actions, strict=True)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        backend.loss(model, batch).value.backward()
        optimizer.step()
    with torch.inference_mode():
        metrics = backend.loss(model.eval(), batch).metrics
        decoded = backend.processor.decode(backend.predict(model, batch), seen)
        expected = backend.processor.decode(trained.vq.decode(trained.vq.encode(chunks(16)[:2])), seen)
    assert float(metrics["token_accuracy"]) == 1
    np.testing.assert_allclose(decoded, expected, atol=1e-5)
    error = np.abs(expected - actions).mean()
    assert float(metrics["action_l1_rad"]) == pytest.approx(float(error), rel=1e-3)


def test_actions_are_in_the_units_of_the_vq_whatever_is_learnt_from_later(
    config: MiniVLAConfig, tiny_statistics: DatasetStatistics, make_observation: MakeObservation
) -> None:
    wider = dataclasses.replace(
        tiny_statistics, action=dataclasses.replace(tiny_statistics.action, q99=tiny_statistics.action.q99 * 3)
    )
    seen, values = [make_observation(0)], torch.ones(1, 4, 8)
    first, second = (make(config, statistics).processor.decode(values, seen) for statistics in (tiny_statistics, wider))
    np.testing.assert_array_equal(first, second)


def test_frames_go_from_the_oldest_to_the_newest_the_cameras_of_each_in_order(
    config: MiniVLAConfig, tiny_statistics: DatasetStatistics, make_observation: MakeObservation
) -> None:
    processor = make(config, tiny_statistics).processor
    old, now = make_observation(0), make_observation(1)
    seen = processor.encode(dataclasses.replace(now, past=(old,)))["pixel_values"]
    alone_old, alone_now = (processor.encode(o)["pixel_values"] for o in (old, now))
    assert seen.shape == (4 * 6, 64, 64)
    assert torch.equal(seen, torch.cat([alone_old[12:], alone_now[12:]]))
    assert torch.equal(alone_now[:12], alone_now[12:])  # without a past the newest stands in for it
    swapped = dataclasses.replace(now, images={"primary": now.images["wrist"], "wrist": now.images["primary"]})
    other = processor.encode(swapped)["pixel_values"]
    assert torch.equal(other[12:18], alone_now[18:])
    assert torch.equal(other[18:], alone_now[12:18])


def test_all_frames_are_cropped_and_coloured_alike(
    config: MiniVLAConfig, tiny_statistics: DatasetStatistics, make_observation: MakeObservation
) -> None:
    still = make_observation(0)
    seen = make(config, tiny_statistics).processor.encode(
        dataclasses.replace(still, past=(still,)), rng=np.random.default_rng(0)
    )["pixel_values"]
    assert torch.equal(seen[:12], seen[12:])


@pytest.mark.parametrize("trained_modules", [(), ("language_model.model.embed_tokens",)], ids=["adapters", "embedding"])
def test_the_vq_travels_with_adapters_and_with_the_merged_model(
    trained_modules: tuple[str, ...], config: MiniVLAConfig, tmp_path: Path, tiny_statistics: DatasetStatistics,
    make_observation: MakeObservation,
) -> None:  # fmt: skip
    base = tmp_path / "base"
    base.mkdir()
    without = MiniVLAConfig.tiny()
    make(without, tiny_statistics).save(make(without, tiny_statistics).build(), base)
    settings = dataclasses.replace(config.minivla, model_id=str(base), use_lora=True, trained_modules=trained_modules)
    config = dataclasses.replace(config, minivla=settings)
    backend, seen = make(config, tiny_statistics), [make_observation(0)]
    model = backend.build()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or (parameter.requires_grad and ".lora_" not in name):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    matrix = backend.bare(model).language_model.model.embed_tokens.weight  # of the output, too
    assert matrix.requires_grad == bool(trained_modules)
    checkpoint = tmp_path / "outputs" / "tiny" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    backend.save(model, checkpoint)
    elsewhere = dataclasses.replace(
        config, minivla=dataclasses.replace(settings, vq=dataclasses.replace(VQ, path=str(tmp_path / "gone")))
    )
    (checkpoint / "config.yaml").write_text(dump_config(elsewhere))
    (checkpoint / "dataset_statistics.json").write_text(to_json(tiny_statistics))
    with torch.inference_mode():
        batch = backend.processor.collate([backend.processor.encode(o) for o in seen])
        expected = backend.processor.decode(backend.predict(model.eval(), batch), seen)
    np.testing.assert_allclose(load_policy(checkpoint).infer(seen)[0].actions, expected[0], atol=1e-5)
    merge(checkpoint / "lora_adapters", tmp_path / "merged", tolerance=1e-3)
    np.testing.assert_allclose(load_policy(tmp_path / "merged").infer(seen)[0].actions, expected[0], atol=1e-3)

    (checkpoint / "vq" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"vq lacks model\.safetensors"):
        load_policy(checkpoint)
    for directory in (checkpoint, tmp_path / "merged"):
        shutil.rmtree(directory / "vq")
        with pytest.raises(CheckpointError, match=rf"{directory} lacks vq/, .*; copy it again"):
            load_policy(directory)


def test_what_models_are_compared_by_follows_their_weights_without_jumps(
    config: MiniVLAConfig, tiny_statistics: DatasetStatistics, make_observation: MakeObservation
) -> None:
    backend = make(config, tiny_statistics)
    model = backend.build().eval()
    batch = backend.processor.collate([backend.processor.encode(make_observation(0))])
    little, more = moved_by_noise(backend, model, batch)
    assert 0 < little < 1e-3
    assert more > 10 * little


def test_a_run_does_not_go_on_with_another_vq(
    config: MiniVLAConfig, trained: TrainedVQ, tmp_path: Path, tiny_statistics: DatasetStatistics
) -> None:
    backend = make(config, tiny_statistics)
    backend.save(backend.build(), tmp_path)
    backend.check_base(tmp_path)
    other = fit(
        chunks(16), trained.vq.shape, FitSettings(steps=2, batch_size=8, learning_rate=1e-3, seed=1),
        report=lambda *_: None,
    )  # fmt: skip
    save_vq(dataclasses.replace(trained, vq=other), tmp_path / "vq")
    with pytest.raises(CheckpointError, match=r"vq holds another VQ than this run's; go on with the same one"):
        backend.check_base(tmp_path)
    save_vq(dataclasses.replace(trained, units=dataclasses.replace(trained.units, span_floor=0.1)), tmp_path / "vq")
    with pytest.raises(CheckpointError, match="holds another VQ"):
        backend.check_base(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vq": {"n_groups": 4}}, r"minivla\.vq\.n_groups is 4, but the VQ in .* was trained with 3; use the same"),
        ({"vq": {"action_horizon": 5}}, r"minivla\.vq\.action_horizon is 5, but"),
        ({"action_form": "absolute"}, r"minivla\.action_form is 'absolute', but .* with 'relative'"),
        ({"normalization": "bounds"}, r"minivla\.normalization is 'bounds', but .* with 'bounds_q99'"),
        ({"data": {"action_source": "next_state"}}, r"data\.action_source is 'next_state', but .* with 'commanded'"),
    ],
)
def test_a_vq_for_other_settings_is_refused(
    changes: dict, message: str, config: MiniVLAConfig, tiny_statistics: DatasetStatistics
) -> None:
    changes = dict(changes)
    vq = dataclasses.replace(config.minivla.vq, **changes.pop("vq", {}))
    data = dataclasses.replace(config.data, **changes.pop("data", {}))
    config = dataclasses.replace(config, data=data, minivla=dataclasses.replace(config.minivla, vq=vq, **changes))
    with pytest.raises(ConfigError, match=message):
        make(config, tiny_statistics)


def test_a_vq_of_seven_joints_names_both_numbers(
    config: MiniVLAConfig, trained: TrainedVQ, tmp_path: Path, tiny_statistics: DatasetStatistics
) -> None:
    shape = VQShape(action_horizon=4, action_dim=7, n_latent=16, n_embed=16, n_groups=3)
    seven = fit(
        torch.rand(8, 4, 7), shape, FitSettings(steps=1, batch_size=8, learning_rate=1e-3, seed=0),
        report=lambda *_: None,
    )  # fmt: skip
    save_vq(dataclasses.replace(trained, vq=seven), tmp_path)
    config = tiny(dataclasses.replace(VQ, path=str(tmp_path)))
    with pytest.raises(ConfigError, match="for 7 numbers, crane_x7 has 8 joints; train one with: python -m"):
        make(config, tiny_statistics)


def test_a_vq_of_another_robot_names_the_first_joint(
    config: MiniVLAConfig, trained: TrainedVQ, tmp_path: Path, tiny_statistics: DatasetStatistics
) -> None:
    others = ("panda_joint1", *CRANE_X7.joint_names[1:])
    save_vq(dataclasses.replace(trained, units=dataclasses.replace(trained.units, joint_names=others)), tmp_path)
    config = tiny(dataclasses.replace(VQ, path=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"joint 1 of the VQ in .* is panda_joint1, that of crane_x7 is crane_x7_sho"):
        make(config, tiny_statistics)


def test_statistics_of_another_robot_beside_a_vq_name_their_file(
    config: MiniVLAConfig, trained: TrainedVQ, tmp_path: Path, tiny_statistics: DatasetStatistics
) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    seven = compute_statistics(rows, rows, num_trajectories=1, fingerprint="x")
    save_vq(dataclasses.replace(trained, statistics=seven), tmp_path)
    config = tiny(dataclasses.replace(VQ, path=str(tmp_path)))
    with pytest.raises(
        CheckpointError, match=rf"{tmp_path}/dataset_statistics\.json describes 7 joints, .*copy the VQ"
    ):
        make(config, tiny_statistics)


def test_another_language_model_is_refused(tiny_base: Path, tiny_statistics: DatasetStatistics) -> None:
    with pytest.raises(
        ConfigError, match=rf"minivla is built on qwen2, .* of {tiny_base} is llama; .* --model-id Stan"
    ):
        make(tiny(model_id=str(tiny_base)), tiny_statistics)
    with pytest.raises(ConfigError, match=r"llm_model_id is 'Qwen/Qwen3', but the base model's is 'Qwen/Qwen2.5-0.5B'"):
        make(tiny(llm_model_id="Qwen/Qwen3"), tiny_statistics)
    with pytest.raises(ConfigError, match="vision_backbone is 'siglip', but the base model's is 'dinosiglip"):
        make(tiny(vision_backbone="siglip"), tiny_statistics)


def test_cameras_and_frames_follow_the_settings() -> None:
    config = MiniVLAConfig()
    assert ([camera.name for camera in config.cameras], config.history) == (["primary", "wrist"], 1)
    images = config.minivla.multi_image

    def changed(**values: object) -> MiniVLAConfig:
        multi_image = dataclasses.replace(images, **values)  # pyright: ignore[reportArgumentType]
        return dataclasses.replace(config, minivla=dataclasses.replace(config.minivla, multi_image=multi_image))

    alone, single = changed(use_wrist_camera=False), changed(enabled=False)
    assert ([camera.name for camera in alone.cameras], alone.history) == (["primary"], 1)
    assert ([camera.name for camera in single.cameras], single.history) == (["primary"], 0)
    with pytest.raises(ConfigError, match=r"use_wrist_camera is true, but data\.cameras enables primary\. For these"):
        dataclasses.replace(config, data=dataclasses.replace(config.data, cameras=config.data.cameras[:1]))


def test_a_vq_that_is_named_but_switched_off_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vq\.path is mine, but minivla\.vq\.enabled is false; .*--vq-path none"):
        VQConfig(enabled=False, path="mine")


def test_a_published_run_is_a_base_with_all_its_weights_and_tokens(
    tmp_path: Path,
    vq_directory: Path,
    tiny_statistics: DatasetStatistics,
    make_observation: MakeObservation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shrink_base_vlms(monkeypatch)
    parts = qwen_parts()
    run = write_native(tmp_path / "run", parts, QWEN_VLM)
    small_chat_tokenizer().save(str(run / "tokenizer.json"))
    config = tiny(dataclasses.replace(VQ, path=str(vq_directory)), model_id=str(run), use_lora=True)
    backend = make(config, tiny_statistics)
    model = backend.build().eval()
    matrix = parts["llm_backbone"]["llm.model.embed_tokens.weight"]
    assert torch.equal(backend.bare(model).language_model.model.embed_tokens.weight, matrix)
    batch = backend.processor.collate([backend.processor.encode(make_observation(0))])
    with torch.inference_mode():
        assert backend.predict(model, batch).shape == (1, 4, 8)
    backend.save(model, tmp_path)
    restored = make(config, tiny_statistics)
    with torch.inference_mode():
        expected = backend.comparable(model, batch)
        torch.testing.assert_close(restored.comparable(restored.restore(tmp_path).eval(), batch), expected)
