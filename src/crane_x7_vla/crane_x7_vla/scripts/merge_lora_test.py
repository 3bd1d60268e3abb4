"""The merge command as the documents show it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crane_x7_vla.config.yaml import dump_config, load_config
from crane_x7_vla.scripts import merge_lora
from crane_x7_vla.scripts.merge_lora import main

torch.set_num_threads(1)
FILES = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "preprocessor_config.json",
    "dataset_statistics.json",
    "config.yaml",
    "action_head.safetensors",
    "proprio_projector.safetensors",
    "film.safetensors",
    "merge_info.json",
}


def command(checkpoint: Path, output: Path, *more: str) -> list[str]:
    return ["--adapter_path", str(checkpoint / "lora_adapters"), "--output_path", str(output), *more]


def test_the_documented_command_writes_a_whole_model_directory(
    tiny_checkpoint: Path, tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "outputs" / "tiny_merged"
    assert main(command(tiny_checkpoint, output, "--base_model", str(tiny_base))) == 0
    assert {path.name for path in output.iterdir()} == FILES
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []
    assert set(load_file(output / "model.safetensors")) == set(load_file(tiny_base / "model.safetensors"))
    assert json.loads((output / "config.json").read_text())["norm_stats"]["crane_x7"]["action"]["q01"]
    info = json.loads((output / "merge_info.json").read_text())
    assert info["dtype"] == "float32"
    assert info["largest_action_difference_rad"] < 1e-5
    said = capsys.readouterr().out
    assert "[1/4]" in said
    assert "merged and unmerged actions differ by at most" in said


def test_the_base_model_defaults_to_the_one_of_the_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert main(command(tiny_checkpoint, tmp_path / "merged")) == 0


def test_the_merged_config_is_that_of_the_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    main(command(tiny_checkpoint, tmp_path / "merged"))
    assert load_config(tmp_path / "merged" / "config.yaml") == load_config(tiny_checkpoint / "config.yaml")


def test_bfloat16_halves_the_weights_and_says_what_it_loses(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "merged"
    assert main(command(tiny_checkpoint, output, "--dtype", "bfloat16", "--tolerance", "0.1")) == 0
    assert {value.dtype for value in load_file(output / "model.safetensors").values()} == {torch.bfloat16}
    trained = load_file(tiny_checkpoint / "modules.safetensors")
    for part in ("action_head", "proprio_projector"):
        for name, value in load_file(output / f"{part}.safetensors").items():
            assert torch.equal(value, trained[f"{part}.{name}"]), name
    info = json.loads((output / "merge_info.json").read_text())
    assert 0 < info["error"] < 1
    assert f"loses {info['error']:.2%} of the change" in capsys.readouterr().out


def test_actions_that_differ_too_much_leave_nothing_behind(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "merged"
    assert main(command(tiny_checkpoint, output, "--dtype", "bfloat16", "--tolerance", "1e-9")) == 2
    assert "nothing was written. Rounding to bfloat16 swallowed the update" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_an_interrupted_merge_leaves_nothing_that_looks_whole(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merge_lora, "sync_tree", interrupt)
    assert main(command(tiny_checkpoint, tmp_path / "merged")) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_what_a_killed_merge_left_is_removed_by_the_next_of_that_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    left, of_another = tmp_path / ".merged.unfinished", tmp_path / ".other.unfinished"
    for folder in (left, of_another):
        (folder / "tokenizer").mkdir(parents=True)
        (folder / ".lock").touch()
        (folder / "model-00001-of-00002.safetensors").touch()
    assert main(command(tiny_checkpoint, tmp_path / "merged")) == 0
    assert {path.name for path in (tmp_path / "merged").iterdir()} == FILES
    assert not left.exists()
    assert of_another.is_dir()


def test_a_merge_at_work_is_left_alone_by_another_to_its_name(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    sync = merge_lora.sync_tree

    def sync_and_meet_another(folder: Path) -> None:
        monkeypatch.setattr(merge_lora, "sync_tree", sync)
        codes.append(main(command(tiny_checkpoint, tmp_path / "merged")))
        sync(folder)

    monkeypatch.setattr(merge_lora, "sync_tree", sync_and_meet_another)
    assert main(command(tiny_checkpoint, tmp_path / "merged")) == 0
    assert codes == [2]
    assert f"error: another merge is writing {tmp_path / 'merged'}; wait" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "merged").iterdir()} == FILES


def test_the_remedy_for_actions_that_differ_is_that_of_the_type_they_are_stored_as(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_checkpoint, tmp_path / "merged", "--tolerance", "-1")) == 2
    assert "float32 rounds too, so allow more if that is little: --tolerance" in capsys.readouterr().err.lower()


def test_an_experiment_in_place_of_adapters_names_its_newest_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--adapter_path", str(tiny_checkpoint.parent), "--output_path", str(tmp_path / "merged")]) == 2
    assert capsys.readouterr().err.endswith(f"name one of its checkpoints: {tiny_checkpoint}\n")


def test_another_base_model_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    weights = load_file(other / "model.safetensors")
    save_file({**weights, "projector.fc1.weight": weights["projector.fc1.weight"] + 1}, other / "model.safetensors")
    assert main(command(tiny_checkpoint, tmp_path / "merged", "--base_model", str(other))) == 2
    assert "was trained on another base model" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["base", "adapters", "config.yaml", "dataset_statistics.json"])
def test_what_is_missing_is_one_line_that_names_it(
    tiny_checkpoint: Path, tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(tiny_checkpoint, tmp_path / "merged")
    if missing == "base":
        config = load_config(tiny_checkpoint / "config.yaml")
        text = dump_config(config).replace(str(config.openvla_oft.model_id), str(tmp_path / "gone"))  # pyright: ignore
        (tiny_checkpoint / "config.yaml").write_text(text)
    elif missing == "adapters":
        shutil.rmtree(tiny_checkpoint / "lora_adapters")
    else:
        (tiny_checkpoint / missing).unlink()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert {"base": "gone", "adapters": "no LoRA adapters"}.get(missing, missing) in said


def test_an_output_that_exists_is_left_alone(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "merged").mkdir()
    assert main(command(tiny_checkpoint, tmp_path / "merged")) == 2
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "merged").iterdir()) == []
