from __future__ import annotations

from pathlib import Path

import pytest

from crane_x7_bringup.demo.journal import append_entry
from crane_x7_bringup.demo.trials import Trials, fingerprint
from crane_x7_vla.errors import CheckpointError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model" / "lora_adapters"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder.parent / "config.yaml").write_text("backend: openvla-oft")
    (folder.parent / "trainer_state.pt").write_bytes(b"state")
    return folder.parent


def trials(model: Path, output: Path, *, draw_elsewhere: bool = False) -> Trials:
    return Trials(
        model=model,
        instruction="pick",
        episodes=3,
        first_seed=7,
        stride=2,
        draw_elsewhere=draw_elsewhere,
        output=output,
    )


def test_trials_of_another_model_are_not_gone_on_with(model: Path, tmp_path: Path) -> None:
    wanted = trials(model, tmp_path / "out")
    assert wanted.begin() == []
    append_entry(wanted.journal, {"seed": 7})
    assert [entry["seed"] for entry in wanted.begin()] == [7]
    # The same size, so that only the content tells.
    (model / "lora_adapters" / "adapter_model.safetensors").write_bytes(b"WEIGHTS")
    assert wanted.begin() == []
    append_entry(wanted.journal, {"seed": 7})
    assert trials(model, tmp_path / "out", draw_elsewhere=True).begin() == []


def test_a_fingerprint_is_of_what_the_policy_is_made_of(model: Path, tmp_path: Path) -> None:
    before = fingerprint(model)
    (model / "trainer_state.pt").write_bytes(b"another")
    assert fingerprint(model) == before
    (model / "config.yaml").write_text("backend: another")
    assert fingerprint(model) != before
    with pytest.raises(CheckpointError, match="nothing holds no model; expected a merged model or a checkpoint-N"):
        fingerprint(tmp_path / "nothing")
