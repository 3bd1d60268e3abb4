"""What only real processes show: the command line's exit codes, Ctrl-C, worker processes, and several of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.backends.prismatic_config import ImageAugConfig
from crane_x7_vla.config.yaml import dump_config
from crane_x7_vla.training.trainer import VLATrainer

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@pytest.fixture
def config(tmp_path: Path, record_episodes: Callable[..., Path]) -> OpenVLAOFTConfig:
    """Random weights, all trained; chunks of one row, so that no batch holds padding."""
    tiny = OpenVLAOFTConfig.tiny()
    return replace(
        tiny,
        output_dir=str(tmp_path / "outputs"),
        experiment_name="run",
        data=replace(tiny.data, data_root=str(record_episodes(tmp_path / "episodes", 4)), val_split=0.25),
        training=replace(tiny.training, max_steps=3, batch_size=2, log_interval=1, save_interval=100),
        openvla_oft=replace(tiny.openvla_oft, action_horizon=1, image_aug=ImageAugConfig(enabled=True)),
    )


def write(config: OpenVLAOFTConfig, path: Path) -> str:
    path.write_text(dump_config(config), encoding="utf-8")
    return str(path)


def start(*argv: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "crane_x7_vla.training.cli", *argv],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(config: OpenVLAOFTConfig, name: str = "train/loss") -> list[float]:
    file = Path(config.output_dir) / config.experiment_name / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def weights(config: OpenVLAOFTConfig) -> dict[str, torch.Tensor]:
    state = Path(config.output_dir) / config.experiment_name / "checkpoint-final" / "trainer_state.pt"
    return torch.load(state, weights_only=True)["weights"]


def test_two_processes_learn_what_one_learns_from_twice_the_batch(config: OpenVLAOFTConfig, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    file = write(config, tmp_path / "config.yaml")
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [start("train", "--config", file, **world, RANK=str(r), LOCAL_RANK=str(r)) for r in (0, 1)]
    alone = replace(config, experiment_name="alone", training=replace(config.training, batch_size=4))
    VLATrainer(alone).train()
    for process in processes:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, out + err
    assert losses(config) == pytest.approx(losses(alone), rel=1e-4)
    assert losses(config, "eval/loss") == pytest.approx(losses(alone, "eval/loss"), rel=1e-3)
    one, two = weights(alone), weights(config)
    difference = np.mean([float((one[name].float() - two[name].float()).abs().mean()) for name in one])
    moved = config.training.learning_rate * 3
    assert difference < 0.05 * moved  # AdamW's steps are of the size of the rate; equal runs differ by rounding only


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(config: OpenVLAOFTConfig, tmp_path: Path) -> None:
    endless = replace(config, training=replace(config.training, max_steps=100_000))
    process = start("train", "--config", write(endless, tmp_path / "config.yaml"))
    metrics = Path(config.output_dir) / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 180
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (checkpoint,) = (Path(config.output_dir) / "run").glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"stopped at step {step}; go on with: python -m crane_x7_vla.training.cli train --config " in err
    command = err.rstrip().rsplit("crane_x7_vla.training.cli ", 1)[1].split()
    again = start(*command, "--max-steps", str(step + 1))
    out, err = again.communicate(timeout=180)
    assert again.returncode == 0, err
    assert f"trained {step + 1} steps" in out


def test_worker_processes_read_the_same_batches(config: OpenVLAOFTConfig) -> None:
    VLATrainer(config).train()
    with_workers = replace(config, experiment_name="workers", data=replace(config.data, num_workers=2))
    VLATrainer(with_workers).train()
    assert losses(with_workers) == losses(config)
    assert losses(with_workers, "eval/loss") == losses(config, "eval/loss")
