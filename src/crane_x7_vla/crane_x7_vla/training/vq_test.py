from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crane_x7_vla.backends.minivla.config import MiniVLAConfig, VQConfig
from crane_x7_vla.backends.minivla.vq import units_of
from crane_x7_vla.checkpoints.vq import load_vq
from crane_x7_vla.config.yaml import dump_config
from crane_x7_vla.errors import ConfigError, DataError
from crane_x7_vla.policies.policy import load_policy
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.training.arguments import PROGRAM
from crane_x7_vla.training.cli import main
from crane_x7_vla.training.loading import prepare_data
from crane_x7_vla.training.vq import train_vq, vq_report

SMALL = VQConfig(action_horizon=4, n_embed=16, n_latent=16, n_groups=3, steps=200, batch_size=32, learning_rate=3e-3)
Record = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLA_OUTPUT_DIR", "VLA_DATA_ROOT", "WANDB_MODE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory, record_episodes: Record) -> Path:
    return record_episodes(tmp_path_factory.mktemp("episodes"), 6, n_steps=12)


@pytest.fixture
def config(tmp_path: Path, episodes: Path) -> MiniVLAConfig:
    tiny = MiniVLAConfig.tiny()
    return replace(
        tiny,
        output_dir=str(tmp_path / "outputs"),
        experiment_name="mine",
        data=replace(tiny.data, data_root=str(episodes), val_split=0.2),
        minivla=replace(tiny.minivla, vq=SMALL),
    )


def test_the_error_it_reports_is_that_of_the_held_out_actions(config: MiniVLAConfig, tmp_path: Path) -> None:
    results = train_vq(config)
    assert results.directory == tmp_path / "outputs" / "mine" / "vq"
    trained = load_vq(results.directory)
    units = units_of(trained, CRANE_X7)
    held_out = list(prepare_data(config, images=False).val)
    errors: list[np.ndarray] = []
    for sample in held_out:
        labels = units.labels(sample.observation, sample.actions, action_horizon=4, is_pad=sample.is_pad)["labels"]
        with torch.inference_mode():
            decoded = trained.vq.decode(trained.vq.encode(labels[None]))
        # Within the range of the training episodes, outside of which labels are clipped.
        within = units.targets(labels[None], [sample.observation])
        errors.append(np.abs(units.targets(decoded, [sample.observation]) - within)[0])
    np.testing.assert_allclose(results.by_joint, np.mean(errors, axis=(0, 1)), atol=1e-5)
    assert results.largest == pytest.approx(np.max(errors), abs=1e-5)
    assert (trained.units.action_source, trained.units.action_form) == ("commanded", "relative")


def test_it_learns_the_chunks_of_the_training_episodes(config: MiniVLAConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    results = train_vq(replace(config, data=replace(config.data, val_split=0)))
    samples = list(prepare_data(config, images=False).train)
    moved = np.mean([np.abs(sample.actions - sample.observation.state) for sample in samples])
    assert np.mean(results.by_joint) < 0.4 * moved
    assert min(results.used) > 4
    assert "mean error of reconstructed training chunks" in vq_report(results, CRANE_X7)
    assert re.search(r"update 6/200: reconstruction error 0\.\d+ rad, \d+:\d\d left", caplog.text)
    assert re.search(r"update 200/200: .*, 0:00 left", caplog.text)


def test_images_are_not_read(config: MiniVLAConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> np.ndarray:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("crane_x7_vla.data.dataset.decode_jpeg", fail)
    short = replace(config.minivla, vq=replace(SMALL, steps=2))
    assert train_vq(replace(config, minivla=short)).directory.is_dir()


def test_a_vq_that_is_there_is_not_replaced(config: MiniVLAConfig, tmp_path: Path) -> None:
    (tmp_path / "outputs" / "mine" / "vq").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"vq is there already; choose another --experiment-name, or remove it: rm"):
        train_vq(config)


def test_a_vq_that_diverged_is_not_written(config: MiniVLAConfig, tmp_path: Path) -> None:
    wild = replace(config.minivla, vq=replace(SMALL, steps=4, learning_rate=1e30))
    with pytest.raises(
        ConfigError, match=r"error is (nan|inf); nothing was written\. Try a smaller --vq-learning-rate"
    ):
        train_vq(replace(config, minivla=wild))
    assert not (tmp_path / "outputs").exists()


def test_what_cannot_be_learnt_from_leaves_nothing(config: MiniVLAConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no episodes under"):
        train_vq(replace(config, data=replace(config.data, data_root=str(tmp_path / "none"))))
    with pytest.raises(ConfigError, match=r"vq\.enabled is false"):
        train_vq(replace(config, minivla=MiniVLAConfig.tiny().minivla))
    assert not (tmp_path / "outputs").exists()


def test_train_vq_then_minivla_then_load_policy(
    config: MiniVLAConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(dump_config(config))
    assert main(["train-vq", "--config", str(file)]) == 0
    vq = tmp_path / "outputs" / "mine" / "vq"
    printed = capsys.readouterr().out
    assert "crane_x7_wrist_joint" in printed
    assert "mean error of reconstructed held-out chunks" in printed
    said = re.fullmatch(f"wrote {vq}; train with it: {re.escape(PROGRAM)} (.*)", printed.splitlines()[-1])
    assert said is not None
    # Typed as it is printed, in another shell: sizes, data and experiment are those of the VQ.
    assert main([*said[1].split(), "--max-steps", "2", "--eval-samples", "4"]) == 0
    shutil.rmtree(vq)
    assert main(["train-vq", "--config", str(file), "--vq-n-groups", "2"]) == 0  # the one it was trained with travelled
    last = tmp_path / "outputs" / "mine" / "checkpoint-final"
    argv = ["train", "--resume-from-checkpoint", str(last), "--max-steps", "3", "--eval-samples", "4"]
    assert main([*argv, "--vq-path", str(vq)]) == 2
    assert "minivla.vq.n_groups is 3, but the VQ in" in capsys.readouterr().err.splitlines()[-1]
    assert main(argv) == 0
    file.write_text(file.read_text().replace("steps: 200", "steps: 201"))  # counts for train-vq alone
    assert "steps: 201" in file.read_text()
    again = ["train", "--config", str(file), "--resume-from-checkpoint", "latest", "--eval-samples", "4"]
    assert main([*again, "--max-steps", "4", "--keep-last", "1"]) == 0  # the file knows of no VQ
    again[2] = str(last.parent / "config.yaml")  # and this one of that of a checkpoint that is no more
    assert main([*again, "--max-steps", "5", "--keep-last", "1"]) == 0
    assert main([*again, "--max-steps", "6"]) == 0
    policy = load_policy(last)
    sample = prepare_data(config).val[5]
    (chunk,) = policy.infer([sample.observation])
    assert chunk.actions.shape == (4, 8)
    assert (policy.spec.history, policy.spec.n_action_steps) == (1, 4)


def test_without_a_vq_the_command_that_makes_one_is_named(
    config: MiniVLAConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(dump_config(config))
    assert main(["train", "minivla", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    said = "minivla.vq.path is none, and the base model brings no VQ; train one with: python -m"
    assert said in error.splitlines()[-1]
    assert main(["train", "minivla", "--config", str(file), "--vq-path", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"minivla.vq.path is {tmp_path}, and there is no VQ there; train one with: " in error.splitlines()[-1]
    assert main(["train-vq", "openvla", "--config", str(file)]) == 2
    assert "the backends differ: the first argument says openvla" in capsys.readouterr().err
