from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from crane_x7_vla.backends.openvla_oft.backend import OpenVLAOFTBackend
from crane_x7_vla.backends.openvla_oft.config import MultiImageConfig, OpenVLAOFTConfig
from crane_x7_vla.config.yaml import load_config
from crane_x7_vla.data.statistics import load_statistics, to_json
from crane_x7_vla.errors import CheckpointError, ConfigError, DataError
from crane_x7_vla.policies.policy import load_policy
from crane_x7_vla.training.evaluate import evaluate_checkpoint
from crane_x7_vla.training.loading import prepare_data
from crane_x7_vla.training.logs import MetricLog
from crane_x7_vla.training.trainer import TrainingResults, VLATrainer

MakeConfig = Callable[..., OpenVLAOFTConfig]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory, record_episodes: Callable[..., Path]) -> Path:
    return record_episodes(tmp_path_factory.mktemp("episodes"), 5)


@pytest.fixture
def make_config(tmp_path: Path, data_root: Path, tiny_base: Path) -> MakeConfig:
    """A run of four updates with adapters on a tiny base; settings of the training by name."""

    def make(*, data: dict[str, Any] | None = None, oft: dict[str, Any] | None = None, **training: Any) -> Any:
        tiny = OpenVLAOFTConfig.tiny()
        training = {"max_steps": 4, "batch_size": 2, "log_interval": 1, "eval_interval": 2, **training}
        return replace(
            tiny,
            output_dir=str(tmp_path / "outputs"),
            experiment_name="tiny",
            data=replace(tiny.data, data_root=str(data_root), val_split=0.2, **(data or {})),
            training=replace(tiny.training, **{"save_interval": 2, **training}),
            openvla_oft=replace(tiny.openvla_oft, **{"model_id": str(tiny_base), "use_lora": True, **(oft or {})}),
        )

    return make


def metric_lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_folder(config: OpenVLAOFTConfig) -> Path:
    return Path(config.output_dir) / config.experiment_name


def interrupt_after(monkeypatch: pytest.MonkeyPatch, n_losses: int) -> None:
    """Ctrl-C while the n-th loss of training is computed."""
    original, calls = OpenVLAOFTBackend.loss, 0

    def loss(self: OpenVLAOFTBackend, model: torch.nn.Module, batch: Any) -> Any:
        nonlocal calls
        calls += model.training
        if model.training and calls == n_losses:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, model, batch)

    monkeypatch.setattr(OpenVLAOFTBackend, "loss", loss)


def assert_same(first: Any, second: Any, path: str = "") -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), f"{path} differs"
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), path
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    else:
        assert first == second, path


def test_a_run_leaves_checkpoints_links_metrics_and_its_record(make_config: MakeConfig) -> None:
    config = make_config()
    results = VLATrainer(config).train()
    folder = run_folder(config)
    assert results.step == 4
    assert results.checkpoint == folder / "checkpoint-4"
    assert not results.interrupted
    assert sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.is_symlink()) == [
        "checkpoint-2", "checkpoint-4", "tensorboard",
    ]  # fmt: skip
    assert os.readlink(folder / "checkpoint-final") == "checkpoint-4"
    for name in ("config.yaml", "dataset_statistics.json", "run.json", "trainer_state.pt", "lora_adapters"):
        assert (results.checkpoint / name).exists()

    lines = metric_lines(folder)
    training = [line for line in lines if "train/loss" in line]
    evaluations = {int(line["step"]): line for line in lines if "eval/loss" in line}
    assert [line["step"] for line in training] == [1, 2, 3, 4]
    assert training[0].keys() >= {"train/action_l1_rad", "train/learning_rate", "train/grad_norm", "train/epoch"}
    assert list(evaluations) == [2, 4]
    assert evaluations[4].keys() == {"step", "eval/loss", "eval/action_l1_rad", "eval/action_l1_rad_start"}
    best = min(evaluations, key=lambda step: evaluations[step]["eval/loss"])
    assert os.readlink(folder / "checkpoint-best") == f"checkpoint-{best}"
    assert results.metrics["eval/loss"] == evaluations[4]["eval/loss"]

    saved = load_config(results.checkpoint / "config.yaml")
    assert saved.data.action_source == "commanded"
    assert [(camera.width, camera.height) for camera in saved.data.cameras] == [(32, 24), (32, 24)]
    run = json.loads((results.checkpoint / "run.json").read_text())
    assert not set(run["split"]["train"]) & set(run["split"]["val"])
    assert len(run["split"]["train"]) + len(run["split"]["val"]) == 5
    assert run["packages"]["torch"] == torch.__version__
    assert run["step"] == 4


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything that keeps state: dropout, augmentation, accumulation, averages, a schedule, early starts."""
    settings: dict[str, Any] = {
        "max_steps": 6,
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.9,
        "lr_schedule": "cosine",
        "warmup_ratio": 0.34,
    }
    more: dict[str, Any] = {"oft": {"lora_dropout": 0.3}, "data": {"start_fraction": 0.5, "start_steps": 2}}
    config = make_config(**settings, **more)
    whole = replace(config, experiment_name="whole")
    VLATrainer(whole).train()

    interrupt_after(monkeypatch, 5)  # in the first half of the third update
    stopped = VLATrainer(config).train()
    assert stopped.interrupted
    assert stopped.step == 3
    assert "--resume-from-checkpoint latest" in stopped.resume
    assert not (run_folder(config) / "checkpoint-final").is_symlink()
    torch.manual_seed(99)  # whatever the new process's state is
    resumed = VLATrainer(replace(config, training=replace(config.training, resume_from_checkpoint="latest"))).train()
    assert (resumed.step, resumed.interrupted) == (6, False)

    one, other = (
        torch.load(folder / "checkpoint-6" / "trainer_state.pt", weights_only=True)
        for folder in (run_folder(whole), run_folder(config))
    )
    for state in (one, other):
        state.pop("seconds")
    assert_same(one, other)
    for name in ("adapter_model.safetensors",):
        files = [f / "checkpoint-6" / "lora_adapters" / name for f in (run_folder(whole), run_folder(config))]
        assert files[0].read_bytes() == files[1].read_bytes()
    expected, found = metric_lines(run_folder(whole)), metric_lines(run_folder(config))
    for line in (*expected, *found):
        line.pop("train/samples_per_second", None)
    evaluated_at_stop = [line for line in found if line not in expected]
    assert not evaluated_at_stop
    assert [line for line in expected if line not in found] == []


def test_a_signal_during_the_last_update_leaves_a_finished_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 2)
    config = make_config(max_steps=2)
    results = VLATrainer(config).train()
    assert (results.step, results.interrupted) == (2, False)
    assert (run_folder(config) / "checkpoint-final").resolve() == results.checkpoint
    assert (run_folder(config) / "checkpoint-best").resolve() == results.checkpoint
    assert "eval/loss" in results.metrics


def test_a_run_goes_on_from_an_older_checkpoint_only_in_another_experiment(make_config: MakeConfig) -> None:
    config = make_config(keep_last=1, eval_interval=1)
    VLATrainer(replace(config, training=replace(config.training, keep_last=0, save_interval=1))).train()
    older = run_folder(config) / "checkpoint-2"
    again = replace(config, training=replace(config.training, resume_from_checkpoint=str(older)))
    with pytest.raises(CheckpointError, match=r"holds checkpoint-3, checkpoint-4, which .* --experiment-name, or rem"):
        VLATrainer(again).train()
    branch = replace(again, experiment_name="branch")
    assert VLATrainer(branch).train().step == 4
    folder = run_folder(branch)
    assert (folder / "checkpoint-final").resolve() == folder / "checkpoint-4"
    assert (folder / "checkpoint-best").resolve() == folder / "checkpoint-4"


def test_gradients_of_two_halves_are_those_of_the_whole_batch(make_config: MakeConfig) -> None:
    """Chunks of one row, so that none is padded: a batch's loss is the mean over the rows that are not."""
    settings: dict[str, Any] = {"max_steps": 1, "eval_interval": 9}
    one_row: dict[str, Any] = {"oft": {"action_horizon": 1, "lora_dropout": 0.0}}
    whole = make_config(batch_size=8, **settings, **one_row)
    halves = make_config(batch_size=4, gradient_accumulation_steps=2, **settings, **one_row)
    first, second = (
        torch.load(VLATrainer(config).train().checkpoint / "trainer_state.pt", weights_only=True)
        for config in (replace(whole, experiment_name="whole"), halves)
    )
    assert first["samples"] == second["samples"] == 8
    for key, moments in first["optimizer"].items():  # the first moment is a tenth of the gradient
        expected = moments["exp_avg"]
        torch.testing.assert_close(
            second["optimizer"][key]["exp_avg"], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-9
        )


def test_every_weight_can_be_trained_and_the_result_needs_no_base(
    make_config: MakeConfig, tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = make_config(oft={"model_id": str(base), "use_lora": False}, max_steps=2, eval_samples=0)
    results = VLATrainer(config).train()
    assert (results.checkpoint / "model.safetensors").is_file()
    before, after = (load_file(folder / "model.safetensors") for folder in (base, results.checkpoint))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"language_model.lm_head.weight"}
    shutil.rmtree(base)

    saved = load_config(results.checkpoint / "config.yaml")
    assert evaluate_checkpoint(saved, results.checkpoint).loss == pytest.approx(results.metrics["eval/loss"], rel=1e-5)
    seen = prepare_data(saved).val[0].observation
    (chunk,) = load_policy(results.checkpoint).infer([seen])
    assert chunk.actions.shape == (4, 8)


def test_one_camera_of_two_is_all_that_is_asked_of_the_data(
    make_config: MakeConfig, tmp_path: Path, record_episodes: Callable[..., Path]
) -> None:
    root = record_episodes(tmp_path / "one", 3, cameras=("primary",))
    config = make_config(max_steps=1, oft={"multi_image": MultiImageConfig(enabled=False)})
    results = VLATrainer(replace(config, data=replace(config.data, data_root=str(root)))).train()
    saved = load_config(results.checkpoint / "config.yaml")
    assert [camera.name for camera in saved.cameras] == ["primary"]
    assert evaluate_checkpoint(saved, results.checkpoint).n_steps == 6


def test_settings_that_change_when_a_run_goes_on_are_said(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(max_steps=2)
    VLATrainer(config).train()
    again = replace(
        config,
        data=replace(config.data, start_fraction=0.5),
        training=replace(config.training, resume_from_checkpoint="latest", max_steps=3, learning_rate=7e-5),
    )
    with caplog.at_level("INFO"):
        results = VLATrainer(again).train()
    assert "data.start_fraction changes from 0.0 to 0.5" in caplog.messages
    assert "training.learning_rate changes from 0.001 to 7e-05" in caplog.messages
    assert results.step == 3
    assert metric_lines(run_folder(config))[-2]["train/learning_rate"] == pytest.approx(7e-5)
    assert load_config(results.checkpoint / "config.yaml").training.resume_from_checkpoint is None
    finished = VLATrainer(again).train()
    assert (finished.step, finished.checkpoint) == (3, run_folder(config) / "checkpoint-3")


def test_a_run_goes_on_only_with_the_model_and_the_episodes_it_began_with(
    make_config: MakeConfig, tmp_path: Path, record_episodes: Callable[..., Path]
) -> None:
    config = make_config(max_steps=1)
    VLATrainer(config).train()
    resume = replace(config, training=replace(config.training, resume_from_checkpoint="latest"))
    other_rank = replace(resume, openvla_oft=replace(config.openvla_oft, lora_rank=8))
    with pytest.raises(ConfigError, match=r"openvla_oft.lora_rank is 8, but .*checkpoint-1 was trained with 4"):
        VLATrainer(other_rank).train()
    with pytest.raises(ConfigError, match=r"seed is 1, but .*checkpoint-1 was trained with 42"):
        VLATrainer(replace(resume, seed=1)).train()
    other_split = replace(resume, data=replace(config.data, val_split=0.4))
    with pytest.raises(DataError, match=r"the 3 training episodes are not the 4 that .*checkpoint-1 was trained on"):
        VLATrainer(other_split).train()
    more = record_episodes(tmp_path / "more", 6)
    with pytest.raises(DataError, match=r"5 training episodes are not the 4 that"):
        VLATrainer(replace(resume, data=replace(config.data, data_root=str(more)))).train()
    with pytest.raises(ConfigError, match=r"already holds checkpoint-1; go on with --resume-from-checkpoint latest"):
        VLATrainer(config).train()
    elsewhere = replace(resume, experiment_name="empty")
    with pytest.raises(CheckpointError, match=r"no checkpoint under .*empty to resume from"):
        VLATrainer(elsewhere).train()


def test_a_run_goes_on_however_its_base_model_is_reached(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_steps=1)
    whole = str(config.openvla_oft.model_id)
    (tmp_path / "base").symlink_to(whole)
    monkeypatch.chdir(tmp_path)
    VLATrainer(replace(config, openvla_oft=replace(config.openvla_oft, model_id="base"))).train()
    again = replace(config, training=replace(config.training, resume_from_checkpoint="latest", max_steps=2))
    assert VLATrainer(again).train().step == 2


def test_a_run_does_not_go_on_with_another_base_under_the_same_name(
    make_config: MakeConfig, tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = make_config(oft={"model_id": str(base)}, max_steps=1, eval_samples=0)
    VLATrainer(config).train()
    weights = load_file(base / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="trained on another base model than the one given"):
        VLATrainer(replace(config, training=replace(config.training, resume_from_checkpoint="latest"))).train()


def test_a_damaged_state_is_refused(make_config: MakeConfig) -> None:
    config = make_config(max_steps=1)
    VLATrainer(config).train()
    state = run_folder(config) / "checkpoint-1" / "trainer_state.pt"
    resume = replace(config, training=replace(config.training, resume_from_checkpoint="latest", max_steps=2))
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"trainer_state.pt is damaged; resume from an earlier checkpoint"):
        VLATrainer(resume).train()
    state.unlink()
    with pytest.raises(CheckpointError, match=r"no trainer_state.pt in"):
        VLATrainer(resume).train()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_no_number_stops_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    original, calls = OpenVLAOFTBackend.loss, 0

    def loss(self: OpenVLAOFTBackend, model: torch.nn.Module, batch: Any) -> Any:
        nonlocal calls
        calls += model.training
        found = original(self, model, batch)
        if calls < 4:
            return found
        bad = (
            found.value * float("nan") if where == "loss" else found.value + (found.value - found.value.detach()).sqrt()
        )
        return replace(found, value=bad)

    monkeypatch.setattr(OpenVLAOFTBackend, "loss", loss)
    config = make_config(max_steps=6)
    name = {"loss": "loss", "gradient": "grad_norm"}[where]
    with pytest.raises(
        ConfigError, match=rf"{name} is nan at step 4; the last checkpoint is .*checkpoint-2. Try a small"
    ):
        VLATrainer(config).train()
    assert [path.name for path in run_folder(config).glob("checkpoint-?")] == ["checkpoint-2"]


def test_only_the_newest_and_the_best_checkpoints_are_kept(make_config: MakeConfig) -> None:
    config = make_config(max_steps=8, keep_last=1)
    VLATrainer(config).train()
    folder = run_folder(config)
    kept = {path.name for path in folder.glob("checkpoint-?")}
    assert kept == {"checkpoint-8", os.readlink(folder / "checkpoint-best")}


def test_the_time_budget_ends_the_run_with_a_final_checkpoint(make_config: MakeConfig) -> None:
    config = make_config(max_steps=100_000, max_minutes=0.02, lr_schedule="cosine", log_interval=10_000)
    results = VLATrainer(config).train()
    assert 1 <= results.step < 1000
    assert not results.interrupted
    assert os.readlink(run_folder(config) / "checkpoint-final") == f"checkpoint-{results.step}"
    assert "eval/loss" in results.metrics


def test_without_held_out_episodes_there_is_no_evaluation_and_no_best(make_config: MakeConfig) -> None:
    config = make_config()
    config = replace(config, data=replace(config.data, val_split=0.0))
    results = VLATrainer(config).train()
    assert not any(name.startswith("eval/") for name in results.metrics)
    assert not (run_folder(config) / "checkpoint-best").exists()
    with pytest.raises(DataError, match=r"no episodes were held out .*name some with --test-data"):
        evaluate_checkpoint(config, results.checkpoint)


def test_epochs_set_the_length_of_a_run(make_config: MakeConfig) -> None:
    config = make_config(max_steps=None, num_epochs=2, batch_size=5, gradient_accumulation_steps=2)
    assert VLATrainer(config).train().step == 5  # 4 episodes of 6 steps, twice, by 10
    assert metric_lines(run_folder(config))[-2]["train/epoch"] == pytest.approx(50 / 24)


def test_the_average_of_the_weights_is_what_is_evaluated_and_saved(make_config: MakeConfig) -> None:
    config = make_config(ema_decay=0.5, max_steps=3)
    results = VLATrainer(config).train()
    state = torch.load(results.checkpoint / "trainer_state.pt", weights_only=True)
    restored = _restored(results)
    name = next(name for name in state["ema"]["averages"] if "action_head" in name)
    saved = next(
        tensor for key, tensor in restored.items() if key.split("action_head")[-1] == name.split("action_head")[-1]
    )
    assert torch.allclose(saved.float(), state["ema"]["averages"][name])
    assert not torch.equal(saved, state["weights"][name])


def _restored(results: TrainingResults) -> dict[str, torch.Tensor]:
    config = load_config(results.checkpoint / "config.yaml")
    data = prepare_data(config)
    backend = OpenVLAOFTBackend(config, robot=data.robot, statistics=data.statistics)  # pyright: ignore
    return backend.restore(results.checkpoint).state_dict()


def test_evaluating_a_checkpoint_gives_the_metrics_of_its_run(make_config: MakeConfig, data_root: Path) -> None:
    config = make_config(eval_samples=0)
    results = VLATrainer(config).train()
    saved = load_config(results.checkpoint / "config.yaml")
    held_out = evaluate_checkpoint(saved, results.checkpoint)
    assert held_out.n_steps == 6
    assert held_out.loss == pytest.approx(results.metrics["eval/loss"], rel=1e-5)
    assert held_out.action_l1_rad == pytest.approx(results.metrics["eval/action_l1_rad"], rel=1e-5)
    assert held_out.start_l1_rad == pytest.approx(results.metrics["eval/action_l1_rad_start"], rel=1e-5)
    everything = evaluate_checkpoint(saved, results.checkpoint, test_data=data_root)
    assert everything.n_steps == 30
    assert everything.by_joint.shape == (8,)
    assert everything.by_row.shape == (4,)


def test_given_statistics_must_be_of_the_training_episodes(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    path = tmp_path / "dataset_statistics.json"
    path.write_text(to_json(prepare_data(config).statistics))
    given = replace(config, data=replace(config.data, statistics_path=str(path)))
    assert prepare_data(given).statistics.fingerprint == load_statistics(path).fingerprint
    for changed in (
        replace(given, seed=7),
        replace(given, data=replace(given.data, action_source="next_state")),
        replace(given, openvla_oft=replace(given.openvla_oft, action_form="absolute")),
        replace(given, openvla_oft=replace(given.openvla_oft, action_horizon=3)),
    ):
        with pytest.raises(DataError, match="was computed from other episodes or for other actions than this run's"):
            prepare_data(changed)


def test_a_device_that_is_not_there_names_the_cpu(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device is cuda, but torch .* sees 0 GPU\(s\); .*--device cpu"):
        VLATrainer(make_config(device="cuda")).train()
    with pytest.raises(ConfigError, match="mixed_precision fp16 needs a GPU"):
        VLATrainer(make_config(mixed_precision="fp16")).train()


def test_camera_sizes_are_checked_against_the_data(make_config: MakeConfig) -> None:
    config = make_config()
    cameras = tuple(replace(camera, width=640, height=480) for camera in config.data.cameras)
    with pytest.raises(DataError, match="camera 'primary' is 32x24 in the data, 640x480 in the config"):
        VLATrainer(replace(config, data=replace(config.data, cameras=cameras))).train()


def test_a_disk_without_room_for_a_checkpoint_is_noticed_before_training(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crane_x7_vla.training import preflight

    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(CheckpointError, match=r"0\.0 GB are free under .*choose another --output-dir"):
        VLATrainer(make_config()).train()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ConfigError,
         "out of GPU memory at batch_size 2. Try --batch-size 1 --grad-accumulation-steps 2, --gradient-checkpointing"),
        (OSError(errno.ENOSPC, "No space left on device"), CheckpointError, "free some, then go on with --resume-from"),
        (OSError(errno.EIO, "Input/output error"), OSError, "Input/output error"),
    ],
)  # fmt: skip
def test_memory_and_disk_that_run_out_say_what_to_do(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(MetricLog, "write", fail)
    with pytest.raises(kind, match=re.escape(message)):
        VLATrainer(make_config()).train()


def test_wandb_is_asked_for_before_anything_heavy(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from crane_x7_vla.training import logs

    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="wandb is not installed; pip install wandb, or --no-use-wandb"):
        VLATrainer(make_config(use_wandb=True)).train()


def test_bf16_trains_on_the_cpu(make_config: MakeConfig) -> None:
    results = VLATrainer(make_config(mixed_precision="bf16", max_steps=1)).train()
    assert results.metrics["train/loss"] > 0


def test_the_loss_falls(make_config: MakeConfig) -> None:
    config = make_config(
        max_steps=15, batch_size=4, learning_rate=5e-3, log_interval=5, eval_interval=20, save_interval=20
    )
    VLATrainer(config).train()
    losses = [line["train/loss"] for line in metric_lines(run_folder(config)) if "train/loss" in line]
    assert losses[-1] < 0.95 * losses[0]


def test_no_step_at_all_saves_the_model_as_it_is_before_training(make_config: MakeConfig) -> None:
    """The demo compares the fine-tuned policy with it."""
    config = make_config(max_steps=0)
    results = VLATrainer(config).train()
    assert results.step == 0
    assert results.checkpoint == run_folder(config) / "checkpoint-0"
    assert (run_folder(config) / "checkpoint-final").resolve() == results.checkpoint
    assert [line["step"] for line in metric_lines(run_folder(config)) if "eval/loss" in line] == [0]
