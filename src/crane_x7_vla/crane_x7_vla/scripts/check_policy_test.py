"""A deployment that does what training measured passes; one that was broken on purpose is told how."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from crane_x7_vla.backends import backend_class, config_class
from crane_x7_vla.backends.minivla.config import MiniVLAConfig
from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig, ProprioConfig
from crane_x7_vla.backends.prismatic_config import PrismaticVLAConfig
from crane_x7_vla.checkpoints.vq import load_vq, save_vq
from crane_x7_vla.config.base import PRIMARY_CAMERA, WRIST_CAMERA
from crane_x7_vla.config.yaml import dump_config, load_config
from crane_x7_vla.data.statistics import load_statistics, to_json
from crane_x7_vla.policies.diagnosis import Change, Deployment, Finding
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.scripts import check_policy
from crane_x7_vla.scripts.check_policy import main
from crane_x7_vla.training.loading import prepare_data
from crane_x7_vla.training.vq import train_vq

torch.set_num_threads(1)
BACKENDS = ("openvla", "openvla-oft", "minivla")


@dataclass(frozen=True)
class Trained:
    model: Path
    data: Path


@pytest.fixture(scope="module", params=BACKENDS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, record_episodes: Callable[..., Path]
) -> Trained:
    """A whole model that knows a few frames by heart; with earlier frames or the joint state if its name says so, else
    without, so that it has to look.

    Each frame of the wrist is one of the other camera at another step, so that it matters which shows which.
    """
    name, _, more = request.param.partition(" with ")
    folder = tmp_path_factory.mktemp(name)
    data = record_episodes(folder / "episodes", 1, n_steps=4)
    config: Any = config_class(name).tiny()  # pyright: ignore[reportAttributeAccessIssue]
    config = replace(config, data=replace(config.data, data_root=str(data), val_split=0.0))
    config = settings(config, image_aug=replace(config.settings.image_aug, crop_scale=0.5))
    if isinstance(config, OpenVLAOFTConfig):
        config = settings(config, proprio=ProprioConfig(enabled=bool(more)))
    if isinstance(config, MiniVLAConfig):
        # Earlier frames would show what the others hide.
        alone = replace(config.minivla.multi_image, image_history=2 if more else 1)
        config = settings(config, vq=replace(config.minivla.vq, enabled=True, steps=200), multi_image=alone)
        config = replace(config, output_dir=str(folder))
        vq = train_vq(config).directory
        config = settings(config, vq=replace(config.minivla.vq, path=str(vq)))
    prepared = prepare_data(config)
    backend = backend_class(name)(prepared.config, robot=CRANE_X7, statistics=prepared.statistics)
    model = backend.build().train()
    batch = backend.processor.collate(
        [backend.processor.encode(s.observation, s.actions, is_pad=s.is_pad) for s in prepared.train]
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        backend.loss(model, batch).value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    directory = folder / "model"
    directory.mkdir()
    backend.save(model, directory)
    (directory / "config.yaml").write_text(dump_config(prepared.config))
    (directory / "dataset_statistics.json").write_text(to_json(prepared.statistics))
    return Trained(directory, data)


def checked(model: Path, data: Path, *more: str) -> int:
    return main(["--model", str(model), "--data", str(data), "--device", "cpu", *more])


def no_joint_state(config: Any) -> Any:
    return settings(config, proprio=ProprioConfig(enabled=False))


def shorter_past(config: Any) -> Any:
    return settings(config, multi_image=replace(config.minivla.multi_image, image_history=1))


def crop(config: Any) -> Any:
    return settings(config, image_aug=replace(config.settings.image_aug, enabled=False))


def settings(config: PrismaticVLAConfig, **values: Any) -> Any:
    return replace(config, **{config.block: replace(config.settings, **values)})


def cameras(config: Any) -> Any:
    swapped = {1: (WRIST_CAMERA,), 2: (WRIST_CAMERA, PRIMARY_CAMERA)}[len(config.cameras)]
    return replace(config, data=replace(config.data, cameras=swapped))


BREAKS: dict[str, Callable[[Any], Any]] = {
    "crop": crop,
    "prompt": lambda config: settings(config, prompt="Robot, please do: {instruction} now!"),
    "cameras": cameras,
    "action form": lambda config: settings(config, action_form="absolute"),
    "statistics": lambda config: config,
}
MORE_BREAKS = BREAKS | {
    "no joint state": no_joint_state,
    "shorter past": shorter_past,
    "action source": lambda config: replace(config, data=replace(config.data, action_source="next_state")),
}
BROUGHT_BY_A_VQ = ("statistics", "action form")


def broken(trained: Trained, folder: Path, cause: str) -> Path:
    """A copy of the model in which one thing is wrong."""
    model = folder / "merged"
    shutil.copytree(trained.model, model)
    file = model / "config.yaml"
    file.write_text(dump_config(MORE_BREAKS[cause](load_config(file))))
    if cause == "statistics":
        statistics = load_statistics(model / "dataset_statistics.json")
        action = replace(statistics.action, q01=2 * statistics.action.q01, q99=2 * statistics.action.q99 + 0.1)
        (model / "dataset_statistics.json").write_text(to_json(replace(statistics, action=action)))
    return model


def test_a_policy_that_does_what_its_training_measured_passes(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained.model)
    assert checked(Path(), trained.data, "--checkpoint", str(trained.model)) == 0
    plot = tmp_path / "pictures" / "joints.png"
    capsys.readouterr()
    assert checked(trained.model, trained.data, "--checkpoint", str(trained.model), "--plot", str(plot)) == 0
    said = capsys.readouterr().out
    assert "4 frames of 1 training episode(s)" in said
    assert "note" not in said
    assert "training path of" in said
    assert "done: it does what training measured" in said
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("is_known", [True, False], ids=["with_its_checkpoint", "alone"])
@pytest.mark.parametrize("cause", BREAKS)
def test_what_was_broken_is_named(
    trained: Trained, tmp_path: Path, cause: str, is_known: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if cause in BROUGHT_BY_A_VQ and isinstance(load_config(trained.model / "config.yaml"), MiniVLAConfig):
        pytest.skip("the VQ brings them along")
    model = broken(trained, tmp_path, cause)
    if is_known:
        info = {"adapter_path": str(trained.model / "lora_adapters")}
        (model / "merge_info.json").write_text(json.dumps(info))
    assert checked(model, trained.data) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert f"Likely cause: {cause}: " in said.err
    assert ("where training measures" in said.err) == is_known
    assert cause != "statistics" or ("the statistics of its training" in said.err) == is_known
    assert (tmp_path / "merged_check.png").is_file()


@pytest.mark.parametrize("trained", ["minivla"], indirect=True)
def test_statistics_and_action_form_are_those_of_the_vq(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ("--checkpoint", str(trained.model))
    assert checked(broken(trained, tmp_path / "a", "statistics"), trained.data, *known) == 0
    capsys.readouterr()
    assert checked(broken(trained, tmp_path / "b", "action form"), trained.data, *known) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "minivla.action_form is 'absolute', but the VQ in " in said


@pytest.mark.parametrize(
    ("trained", "broken_by", "expected"),
    [
        ("minivla with a past", "shorter past", "cameras: 0.0[0-9]+ rad with multi_image.image_history 2."),
        ("openvla-oft with joints", "no joint state", "joint state: 0.0[0-9]+ rad with proprio.enabled true."),
        ("openvla", "action source", "data.action_source is 'next_state' in .*, but 'commanded' in "),
    ],
    indirect=["trained"],
)
def test_other_settings_than_those_of_the_training_are_named(
    trained: Trained, tmp_path: Path, broken_by: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = broken(trained, tmp_path, broken_by)
    assert checked(model, trained.data, "--checkpoint", str(trained.model)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(expected, said), said


@pytest.mark.parametrize("trained", ["minivla"], indirect=True)
def test_another_vq_than_that_of_the_training_is_named(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = broken(trained, tmp_path, "statistics")  # which a VQ brings along
    vq = load_vq(model / "vq")
    with torch.no_grad():
        next(vq.vq.decoder.parameters()).mul_(2)
    save_vq(vq, model / "vq")
    assert checked(model, trained.data, "--checkpoint", str(trained.model)) == 2
    said = capsys.readouterr().err
    assert f"vq: {model / 'vq'} is another than the VQ of its training" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("trained", ["minivla", "openvla"], indirect=True)
def test_other_weights_are_told_from_what_can_be_set(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "merged"
    shutil.copytree(trained.model, model)
    file = model / "model.safetensors"
    save_file({name: torch.randn_like(value) * 0.02 for name, value in load_file(file).items()}, file, {"format": "pt"})
    assert checked(model, trained.data, "--checkpoint", str(trained.model)) == 2
    said = capsys.readouterr().err
    assert "so its weights are others: merge the checkpoint again" in said
    has_vq = isinstance(load_config(model / "config.yaml"), MiniVLAConfig)
    for brought in BROUGHT_BY_A_VQ:
        assert (brought in said) != has_vq
    assert "crop" in said


@pytest.mark.parametrize("trained", ["openvla"], indirect=True)
@pytest.mark.parametrize("is_better", [True, False])
def test_alone_only_what_is_better_than_holding_still_is_a_cause(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_better: bool,
) -> None:
    def no_change() -> Deployment:
        raise AssertionError("nobody makes it")

    found = [Finding(change=Change(cause="crop", text="another", make=no_change), error=1e-4 if is_better else 1.0)]
    monkeypatch.setattr(check_policy, "diagnose", lambda *_, **__: found)
    assert checked(trained.model, trained.data, "--plot", str(tmp_path / "joints.png")) == (2 if is_better else 0)
    said = capsys.readouterr()
    assert ("Likely cause: crop" in said.err) == is_better
    assert ("brings it nearer than an arm that holds still" in said.out) != is_better


@pytest.mark.parametrize("trained", ["openvla"], indirect=True)
def test_a_model_in_its_checkpoint_is_compared_with_that(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(trained.model, checkpoint)
    (checkpoint / "run.json").write_text("{}")
    model = broken(trained, checkpoint, "crop")
    assert checked(model, trained.data) == 2
    said = capsys.readouterr()
    assert f"training path of {checkpoint}: " in said.out
    assert "Likely cause: crop: " in said.err
    assert (tmp_path / "checkpoint-4_merged_check.png").is_file()
    assert not list(checkpoint.rglob("*.png"))


def test_another_instruction_than_in_training_is_named(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = ("--plot", str(tmp_path / "joints.png"), "--checkpoint", str(trained.model))
    elsewhere = "open the door, go out and come back; " * 9  # a small model heeds little of a long chat prompt
    assert checked(trained.model, trained.data, *plot, "--instruction", elsewhere) == 2
    assert "Likely cause: prompt: " in (said := capsys.readouterr().err)
    assert "with the recorded instructions" in said


@pytest.mark.parametrize("trained", BACKENDS[:1], indirect=True)
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("--samples 0", "--samples is 0; expected 1 or more"),
        ("--episode 1", "--episode is 1, but there are 1 training episodes, counted from 0"),
        ("--tolerance -1", "--tolerance is -1.0; expected 0 or more"),
        ("--data gone", "gone"),
        ("--model gone", "gone does not exist"),
        ("--checkpoint gone", "gone does not exist"),
        ("--plot .", ". is a folder; name a file with --plot"),
        ("--device tpu", "device is 'tpu'"),
    ],
)
def test_what_cannot_be_checked_is_one_line(
    trained: Trained, more: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(trained.model, trained.data, "--plot", str(tmp_path / "joints.png"), *more.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert expected in said
