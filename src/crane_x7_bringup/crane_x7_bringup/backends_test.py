"""Every backend, small, from demonstrations recorded through ROS to a model that the inference node could load."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crane_x7_vla.backends import BACKENDS, config_class
from crane_x7_vla.config.yaml import dump_config, load_config
from crane_x7_vla.policies.policy import load_policy
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.scripts import check_policy, merge_lora
from crane_x7_vla.training import cli
from crane_x7_vla.training.loading import prepare_data

pytestmark = pytest.mark.ros
torch.set_num_threads(1)
EPISODES = 5


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of the scripted expert, with both cameras: simulated arm, expert and recorder are real nodes."""
    folder = tmp_path_factory.mktemp("recorded")
    command = [sys.executable, "-m", "crane_x7_bringup.demo.collect", "--episodes", str(EPISODES)]
    subprocess.run(
        [*command, "--data-root", str(folder / "data"), "--log-dir", str(folder / "log")], check=True, timeout=300
    )
    return folder / "data"


def run(*argv: object) -> None:
    assert cli.main([str(word) for word in argv]) == 0


@pytest.mark.parametrize("name", BACKENDS)
def test_it_learns_from_recordings_is_merged_and_does_what_it_learnt(
    name: str, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny: Any = config_class(name).tiny()  # pyright: ignore[reportAttributeAccessIssue]
    data = replace(tiny.data, data_root=str(recorded), val_split=0.2)
    training = replace(tiny.training, learning_rate=3e-3, eval_interval=1000, save_interval=1000)
    Path("tiny.yaml").write_text(dump_config(replace(tiny, data=data, training=training)))
    settings = ["--config", "tiny.yaml"]
    if name == "minivla":
        settings += ["--vq-enabled"]
        run("train-vq", *settings, "--experiment-name", "codes", "--vq-steps", 400)
        settings += ["--vq-path", "outputs/codes/vq"]
    run("train", *settings, "--experiment-name", "base", "--max-steps", 0)  # random weights, a base to adapt
    on_base = ["--model-id", "outputs/base/checkpoint-0", "--use-lora", "--lora-rank", 8, "--lora-alpha", 16]
    run("train", *settings, *on_base, "--experiment-name", "start", "--max-steps", 0)
    run("train", *settings, *on_base, "--experiment-name", "learnt", "--max-steps", 40)

    def evaluation_loss(experiment: str) -> float:
        lines = [json.loads(line) for line in Path("outputs", experiment, "metrics.jsonl").read_text().splitlines()]
        return [line["eval/loss"] for line in lines if "eval/loss" in line][-1]

    assert evaluation_loss("learnt") < 0.9 * evaluation_loss("start")
    adapters = "outputs/learnt/checkpoint-final/lora_adapters"
    assert merge_lora.main(["--adapter_path", adapters, "--output_path", "outputs/learnt_merged"]) == 0
    learnt = load_config(Path("outputs/learnt/checkpoint-final/config.yaml"))
    samples = prepare_data(learnt).train
    merged, unmerged = (
        load_policy(Path("outputs", model)).infer([samples[index].observation for index in (0, 7)])
        for model in ("learnt_merged", "learnt/checkpoint-final")
    )
    for one, other in zip(merged, unmerged, strict=True):
        assert one.actions.shape == (learnt.action_horizon, CRANE_X7.size)
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-4)
    checked = ["--model", "outputs/learnt_merged", "--data", str(recorded), "--device", "cpu"]
    assert check_policy.main(checked) == 0
    assert Path("outputs/learnt_merged_check.png").is_file()
