from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.config.yaml import dump_config, load_config
from crane_x7_vla.data.statistics import load_statistics
from crane_x7_vla.scripts import compute_crane_x7_norm_stats
from crane_x7_vla.training.cli import main
from crane_x7_vla.training.loading import prepare_data


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLA_OUTPUT_DIR", "VLA_DATA_ROOT", "WANDB_MODE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(1)


@pytest.fixture
def tiny_file(tmp_path: Path) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(dump_config(OpenVLAOFTConfig.tiny()), encoding="utf-8")
    return str(file)


def test_backends_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backends"]) == 0
    assert "openvla-oft" in capsys.readouterr().out


def test_a_written_config_is_the_default_and_can_be_trained_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "config.yaml"
    assert main(["config", "--backend", "openvla-oft", "--output", str(file), "--lora-rank", "8"]) == 0
    assert f"wrote {file}" in capsys.readouterr().out
    default = OpenVLAOFTConfig()
    assert load_config(file) == replace(default, openvla_oft=replace(default.openvla_oft, lora_rank=8))
    assert main(["config", "openvla-oft"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    assert load_config(tmp_path / "printed.yaml") == default


def test_print_config_says_where_each_value_comes_from(tiny_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", tiny_file, "--batch-size", "3", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "batch_size: 3  # --batch-size\n" in printed
    assert f"architecture: tiny  # {tiny_file}\n" in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "no backend given; expected one of"),
        (["train", "openvla-oft", "--lora-rnak", "3"], "did you mean '--lora-rank'?"),
        (["train", "openvla-oft", "--device", "cpu", "--data-root", "nowhere"], "no episodes under nowhere. Expected"),
        (["evaluate", "--checkpoint", "nowhere"], "no config.yaml in nowhere"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["train", "evaluate", "statistics"])
def test_where_nothing_can_be_written_is_said_before_anything_is_read(
    command: str, tiny_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    elsewhere, missing = str(tmp_path / "file" / "x"), str(tmp_path / "missing")
    if command == "train":
        code = main(["train", "--config", tiny_file, "--data-root", missing, "--output-dir", elsewhere])
    elif command == "evaluate":
        (tmp_path / "config.yaml").write_text(Path(tiny_file).read_text())
        code = main(["evaluate", "--checkpoint", str(tmp_path), "--test-data", missing, "--output", elsewhere])
    else:
        argv = ["--config", tiny_file, "--data-root", missing, "--output", elsewhere]
        code = compute_crane_x7_norm_stats.main(argv)
    assert code == 2
    option = "--output-dir" if command == "train" else "--output"
    assert f"file is a file, where a folder is needed; choose another {option}\n" in capsys.readouterr().err


def test_train_then_evaluate(
    tiny_file: str, tmp_path: Path, record_episodes: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = record_episodes(tmp_path / "episodes", 3)
    argv = ["train", "openvla-oft", "--config", tiny_file, "--data-root", str(root), "--output-dir", str(tmp_path)]
    assert main([*argv, "--experiment-name", "mine", "--max-steps", "1", "--log-interval", "1"]) == 0
    assert "trained 1 steps" in capsys.readouterr().out
    output = tmp_path / "report" / "metrics.json"
    checkpoint = tmp_path / "mine" / "checkpoint-final"
    assert main(
        ["evaluate", "--config", tiny_file, "--checkpoint", str(checkpoint), "--test-data", str(root),
         "--output", str(output)]
    ) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "crane_x7_wrist_joint" in printed
    assert "row of the chunk" in printed
    values = json.loads(output.read_text())
    assert values["n_steps"] == 18
    assert len(values["by_joint_rad"]) == 8
    assert len(values["by_row_rad"]) == 4
    assert 0 < values["eval/action_l1_rad"] < 3


def test_statistics_are_those_that_training_computes(
    tiny_file: str, tmp_path: Path, record_episodes: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = record_episodes(tmp_path / "episodes", 4)
    assert compute_crane_x7_norm_stats.main(["--config", tiny_file, "--data-root", str(root)]) == 0
    assert "--statistics-path" in capsys.readouterr().out
    tiny = OpenVLAOFTConfig.tiny()
    config = replace(tiny, data=replace(tiny.data, data_root=str(root)))
    expected, found = prepare_data(config).statistics, load_statistics(root / "dataset_statistics.json")
    assert found.fingerprint == expected.fingerprint
    assert found.action.q99.tolist() == expected.action.q99.tolist()
    assert compute_crane_x7_norm_stats.main(["openvla-oft", "--data-root", str(tmp_path / "none")]) == 2
    assert "no episodes under" in capsys.readouterr().err
