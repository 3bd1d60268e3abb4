"""From episodes to a deployed policy: what training measured is what the merged model does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from crane_x7_vla.backends.minivla.backend import MiniVLABackend
from crane_x7_vla.backends.minivla.config import MiniVLAConfig, VQConfig
from crane_x7_vla.backends.openvla.backend import OpenVLABackend
from crane_x7_vla.backends.openvla.config import OpenVLAConfig
from crane_x7_vla.backends.openvla_oft.backend import OpenVLAOFTBackend
from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.config.yaml import load_config
from crane_x7_vla.data.statistics import DatasetStatistics, load_statistics
from crane_x7_vla.policies.policy import load_policy
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.scripts import check_policy
from crane_x7_vla.scripts.merge_lora import main
from crane_x7_vla.training.loading import prepare_data
from crane_x7_vla.training.trainer import VLATrainer
from crane_x7_vla.training.vq import train_vq

torch.set_num_threads(1)


def learn(config: VLAConfig) -> Path:
    """The checkpoint of a run whose evaluation loss has fallen."""
    checkpoint = VLATrainer(config).train().checkpoint
    lines = [json.loads(line) for line in (checkpoint.parent / "metrics.jsonl").read_text().splitlines()]
    first, last = (line["eval/loss"] for line in lines if "eval/loss" in line)
    assert last < first
    return checkpoint


def assert_deployed_as_trained(checkpoint: Path, *, action_horizon: int) -> None:
    """Merged, it gives the actions that it gives on its base."""
    merged = checkpoint.parent.with_name("tiny_merged")
    assert main(["--adapter_path", str(checkpoint / "lora_adapters"), "--output_path", str(merged)]) == 0
    observations = [sample.observation for sample in prepare_data(load_config(checkpoint / "config.yaml")).train]
    unmerged, deployed = (
        np.stack([chunk.actions for chunk in load_policy(directory).infer(observations)])
        for directory in (checkpoint, merged)
    )
    assert unmerged.shape == (len(observations), action_horizon, CRANE_X7.size)
    np.testing.assert_allclose(deployed, unmerged, atol=1e-5)


def test_the_deployed_policy_reproduces_the_training_l1_on_training_frames(
    tmp_path: Path, tiny_base: Path, record_episodes: Callable[..., Path]
) -> None:
    tiny = OpenVLAOFTConfig.tiny()
    config = replace(
        tiny,
        output_dir=str(tmp_path / "outputs"),
        experiment_name="tiny",
        data=replace(tiny.data, data_root=str(record_episodes(tmp_path / "episodes", 4)), val_split=0.25),
        training=replace(tiny.training, max_steps=12, learning_rate=3e-3, save_interval=12),
        openvla_oft=replace(tiny.openvla_oft, model_id=str(tiny_base), use_lora=True),
    )
    checkpoint = VLATrainer(config).train().checkpoint
    merged = tmp_path / "outputs" / "tiny_merged"
    assert main(["--adapter_path", str(checkpoint / "lora_adapters"), "--output_path", str(merged)]) == 0

    trained = load_config(checkpoint / "config.yaml")
    assert isinstance(trained, OpenVLAOFTConfig)
    samples = list(prepare_data(trained).train)
    statistics = load_statistics(checkpoint / "dataset_statistics.json")
    backend = OpenVLAOFTBackend(trained, robot=CRANE_X7, statistics=statistics)
    batch = backend.processor.collate(
        [backend.processor.encode(s.observation, s.actions, is_pad=s.is_pad) for s in samples]
    )
    with torch.inference_mode():
        measured = float(backend.loss(backend.restore(checkpoint).eval(), batch).metrics["action_l1_rad"])

    chunks = load_policy(merged).infer([s.observation for s in samples])
    targets, keep = np.stack([s.actions for s in samples]), ~np.stack([s.is_pad for s in samples])
    deployed = np.abs(np.stack([chunk.actions for chunk in chunks]) - targets)[keep].mean()
    # Labels are clipped at the 1st and 99th percentile, targets are not, hence the tolerance.
    assert abs(deployed - measured) < 0.02 * measured
    assert check_policy.main(["--model", str(merged), "--data", trained.data.data_root, "--device", "cpu"]) == 0


def test_openvla_learns_is_merged_and_gives_the_actions_of_its_checkpoint(
    tmp_path: Path, tiny_statistics: DatasetStatistics, record_episodes: Callable[..., Path]
) -> None:
    tiny = OpenVLAConfig.tiny()
    base = tmp_path / "base"
    base.mkdir()
    whole = OpenVLABackend(tiny, robot=CRANE_X7, statistics=tiny_statistics)
    whole.save(whole.build(), base)
    config = replace(
        tiny,
        output_dir=str(tmp_path / "outputs"),
        experiment_name="tiny",
        data=replace(tiny.data, data_root=str(record_episodes(tmp_path / "episodes", 4)), val_split=0.25),
        training=replace(tiny.training, max_steps=30, learning_rate=3e-3, save_interval=30, eval_interval=15),
        openvla=replace(tiny.openvla, model_id=str(base), use_lora=True),
    )
    checkpoint = learn(config)
    assert_deployed_as_trained(checkpoint, action_horizon=1)


def test_minivla_learns_the_codes_of_its_own_vq_is_merged_and_gives_the_actions_of_its_checkpoint(
    tmp_path: Path, tiny_statistics: DatasetStatistics, record_episodes: Callable[..., Path]
) -> None:
    tiny = MiniVLAConfig.tiny()
    base = tmp_path / "base"
    base.mkdir()
    whole = MiniVLABackend(tiny, robot=CRANE_X7, statistics=tiny_statistics)
    whole.save(whole.build(), base)
    vq = VQConfig(action_horizon=4, n_embed=16, n_latent=16, n_groups=3, steps=100, batch_size=32, learning_rate=3e-3)
    config = replace(
        tiny,
        output_dir=str(tmp_path / "outputs"),
        experiment_name="tiny",
        data=replace(tiny.data, data_root=str(record_episodes(tmp_path / "episodes", 4)), val_split=0.25),
        training=replace(tiny.training, max_steps=30, learning_rate=3e-3, save_interval=30, eval_interval=15),
        minivla=replace(tiny.minivla, model_id=str(base), use_lora=True, vq=vq),
    )
    learnt = train_vq(config).directory
    config = replace(config, minivla=replace(config.minivla, vq=replace(vq, path=str(learnt))))
    checkpoint = learn(config)
    learnt.rename(tmp_path / "elsewhere")
    assert_deployed_as_trained(checkpoint, action_horizon=4)
