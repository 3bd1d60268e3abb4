"""The benchmark of inference: what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from crane_x7_vla.benchmarks.inference import main

torch.set_num_threads(1)
TINY = ("--tiny", "--device", "cpu", "--calls", "2", "--height", "48", "--width", "64")


def test_the_file_has_what_the_table_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--backend", "minivla", *TINY]) == 0
    report = json.loads((tmp_path / "inference_minivla_tiny_cpu.json").read_text())
    assert (report["backend"], report["architecture"], report["dtype"]) == ("minivla", "minivla-tiny", "float32")
    assert (report["images"], report["actions"], report["joints"], report["batch"]) == (4, 4, 8, 1)
    assert 0 < report["median_ms"] <= report["p95_ms"]
    assert report["peak_memory_bytes"] > 4 * report["parameters"]
    # Tokens after the first read the decoder again.
    assert report["weight_bytes"] > 4 * report["parameters"]
    parts = (report["bandwidth_ms"], report["compute_ms"])
    assert 0 < max(parts) <= report["floor_ms"] <= sum(parts)
    shown = capsys.readouterr().out
    assert f"{report['median_ms']:.2f} ms" in shown
    assert f"{report['floor_ms']:.2f} ms" in shown


def test_settings_of_a_file_are_measured_without_its_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, output = Path("oft.yaml"), Path("inference_oft_eager_cpu.json")
    config.write_text(
        "backend: openvla-oft\n"
        "openvla_oft: {model_id: somewhere/else, architecture: tiny, empty_token_id: 3, film: {enabled: false}, "
        "action_head: {hidden_dim: 32}}\n"
    )
    arguments = ["--config", str(config), *TINY[1:], "--eager", "--batch", "2"]
    assert main(arguments) == 0
    report = json.loads(output.read_text())
    assert (report["graph"], report["images"], report["actions"], report["batch"]) == (False, 2, 8, 2)


def test_a_minivla_has_a_vq_of_random_codes(tmp_path: Path) -> None:
    config, output = tmp_path / "minivla.yaml", tmp_path / "minivla.json"
    config.write_text(
        "backend: minivla\nminivla: {architecture: minivla-tiny, multi_image: {image_history: 1}, vq: {n_latent: 16}}\n"
    )
    assert main(["--config", str(config), "--output", str(output), *TINY[1:], "--prompt-multiple", "32"]) == 0
    report = json.loads(output.read_text())
    assert (report["images"], report["actions"], report["prompt_tokens"] % 32) == (2, 8, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "pi9"], "unknown backend 'pi9'"),
        (["--backend", "openvla", "--tiny", "--device", "cpu", "--calls", "0"], "--calls is 0; expected 1 or more"),
        (["--backend", "openvla", "--tiny", "--device", "tpu"], "device is 'tpu'"),
        (["--backend", "openvla", "--tiny", "--device", "cpu", "--output", "/dev/null/x.json"], "--output"),
        (["--config", "nowhere.yaml", "--tiny"], "--tiny goes with --backend"),
        (["--config", "nowhere.yaml", "--backend", "openvla"], "--backend NAME or with --config FILE; both are given"),
        (["--device", "cpu"], "--backend NAME or with --config FILE; neither is given"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
