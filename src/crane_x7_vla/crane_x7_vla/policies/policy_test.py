"""Policies from directories: what loads, what it gives, and what is said where it does not load."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from crane_x7_vla.data.statistics import compute_statistics, to_json
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.policies.policy import LocalPolicy, load_policy
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.scripts.merge_lora import merge
from crane_x7_vla.types import Observation

torch.set_num_threads(1)
MakeObservation = Callable[[int], Observation]


def test_a_checkpoint_with_adapters_and_its_merged_model_give_the_same_actions(
    tiny_checkpoint: Path, tmp_path: Path, tiny_base: Path, make_observation: MakeObservation
) -> None:
    merge(tiny_checkpoint / "lora_adapters", tmp_path / "merged")
    seen = [make_observation(seed) for seed in range(3)]
    adapters, merged, base = (
        np.stack([chunk.actions for chunk in policy.infer(seen)])
        for policy in (
            load_policy(tiny_checkpoint),
            load_policy(tmp_path / "merged"),
            load_base(tiny_base, tiny_checkpoint),
        )
    )
    np.testing.assert_allclose(merged, adapters, atol=1e-5)
    assert np.abs(base - adapters).max() > 0.01


def load_base(base: Path, checkpoint: Path) -> LocalPolicy:
    """The base model itself as a policy: it lacks only what training writes."""
    for name in ("config.yaml", "dataset_statistics.json"):
        (base / name).write_text((checkpoint / name).read_text())
    return load_policy(base)


def test_the_spec_comes_from_the_checkpoint(tiny_checkpoint: Path) -> None:
    spec = load_policy(tiny_checkpoint).spec
    assert spec.robot is CRANE_X7
    assert [(camera.name, camera.topic) for camera in spec.cameras] == [
        ("primary", "/camera/color/image_raw"),
        ("wrist", "/camera_wrist/color/image_raw"),
    ]
    assert (spec.action_horizon, spec.n_action_steps, spec.dt, spec.history) == (4, 4, 0.1, 0)
    assert (spec.action_form, spec.action_source, spec.backend) == ("relative", "commanded", "openvla-oft")


def test_a_batch_gives_each_observation_its_own_chunk(tiny_checkpoint: Path, make_observation: MakeObservation) -> None:
    policy, seen = load_policy(tiny_checkpoint), [make_observation(seed) for seed in (4, 5)]
    together = policy.infer(seen)
    assert [(chunk.stamp, chunk.dt, chunk.actions.shape) for chunk in together] == [
        (4.0, 0.1, (4, 8)),
        (5.0, 0.1, (4, 8)),
    ]
    for chunk, observation in zip(together, seen, strict=True):
        np.testing.assert_allclose(chunk.actions, policy.infer([observation])[0].actions, atol=1e-5)


def test_nothing_to_answer_gives_no_chunk(tiny_checkpoint: Path) -> None:
    assert load_policy(tiny_checkpoint).infer([]) == []


def test_nan_from_the_model_is_an_error_that_names_the_joints(
    tiny_checkpoint: Path, make_observation: MakeObservation
) -> None:
    policy = load_policy(tiny_checkpoint)
    with torch.no_grad():
        policy._model.get_parameter("base_model.model.action_head.model.fc2.bias")[6] = float("nan")
    with pytest.raises(FloatingPointError, match=r"NaN or infinity for crane_x7_wrist_joint$"):
        policy.infer([make_observation(0)])


def test_adapters_alone_name_the_merge_command(tiny_checkpoint: Path, tiny_base: Path) -> None:
    adapters = tiny_checkpoint / "lora_adapters"
    command = (
        f"python -m crane_x7_vla.scripts.merge_lora --adapter_path {adapters} "
        f"--output_path {tiny_checkpoint.parents[1] / 'tiny_merged'} --base_model {tiny_base}"
    )
    with pytest.raises(CheckpointError, match="^Failed to load VLA model: .*" + re.escape(command)):
        load_policy(adapters)


@pytest.mark.parametrize(
    "name", ["config.yaml", "dataset_statistics.json", "modules.safetensors", "lora_adapters/adapter_model.safetensors"]
)
def test_a_missing_file_of_a_checkpoint_is_named(tiny_checkpoint: Path, name: str) -> None:
    (tiny_checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=f"^Failed to load VLA model: .*lacks {Path(name).name}"):
        load_policy(tiny_checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "action_head.safetensors", "proprio_projector.safetensors"])
def test_a_merged_model_with_a_file_cut_off_or_missing_names_it(
    tiny_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    merge(tiny_checkpoint, tmp_path / "merged")
    file = tmp_path / "merged" / name
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=f"^Failed to load VLA model: .*{name} is damaged or cut off"):
        load_policy(tmp_path / "merged")
    file.unlink()
    with pytest.raises(CheckpointError, match=f"^Failed to load VLA model: .*{name}"):
        load_policy(tmp_path / "merged")


def test_statistics_of_another_robot_name_their_file_and_both_sizes(tiny_checkpoint: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    file = tiny_checkpoint / "dataset_statistics.json"
    file.write_text(to_json(compute_statistics(rows, rows, num_trajectories=1, fingerprint="x")))
    with pytest.raises(CheckpointError, match=rf"{file} describes 7 joints, crane_x7 has 8"):
        load_policy(tiny_checkpoint)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^Failed to load VLA model: .*nowhere does not exist"):
        load_policy(tmp_path / "nowhere")


def test_an_experiment_in_place_of_a_model_names_its_newest_checkpoint(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"experiment; name one of its checkpoints: {tiny_checkpoint}$"):
        load_policy(tiny_checkpoint.parent)


def test_a_gpu_that_is_not_there_is_said_before_loading(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CheckpointError, match=r"torch .* sees 0 GPU\(s\); .*device:=cpu"):
        load_policy(tiny_checkpoint, device="cuda")
    assert next(load_policy(tiny_checkpoint, device="auto")._model.parameters()).device.type == "cpu"


def test_a_merged_model_loads_without_peft_and_transformers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    merge(tiny_checkpoint, tmp_path / "merged")
    code = (
        "import sys; from crane_x7_vla.policies.policy import load_policy; "
        f"load_policy({str(tmp_path / 'merged')!r}); print({{'peft', 'transformers'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
