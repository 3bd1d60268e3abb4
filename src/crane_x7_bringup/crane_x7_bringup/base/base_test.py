from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from crane_x7_bringup.base import __main__ as command
from crane_x7_bringup.base.__main__ import make_base
from crane_x7_bringup.base.pretraining import Pretraining, spread
from crane_x7_bringup.base.scenes import Scenes, render_scenes
from crane_x7_bringup.base.shape import BASE_DIRECTORY
from crane_x7_bringup.demo.stages import TRAINING
from crane_x7_vla.backends import backend_class
from crane_x7_vla.config.yaml import load_config
from crane_x7_vla.data.statistics import DatasetStatistics, norm_stats
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.robot import CRANE_X7
from lift.tasks.pick_up import COLOURS


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return render_scenes(3, 700)


@pytest.fixture(scope="module")
def statistics(scenes: Scenes) -> DatasetStatistics:
    stats = norm_stats(scenes.state)
    return DatasetStatistics(action=stats, state=stats, num_transitions=700, num_trajectories=700, fingerprint="")


def built(directory: Path, statistics: DatasetStatistics) -> torch.nn.Module:
    """The model that the demo's training starts from."""
    config = load_config(TRAINING)
    settings = dataclasses.replace(config.openvla_oft, model_id=str(directory))  # pyright: ignore[reportAttributeAccessIssue]
    config = dataclasses.replace(config, openvla_oft=settings)  # pyright: ignore[reportCallIssue]
    return backend_class(config.backend)(config, robot=CRANE_X7, statistics=statistics).build()


def test_scenes_are_repeatable_and_labelled(scenes: Scenes) -> None:
    again = render_scenes(3, 5)
    np.testing.assert_array_equal(again.images, scenes.images[:5])
    np.testing.assert_array_equal(again.target, scenes.target[:5])
    assert set(scenes.named) == set(COLOURS)
    # The two positions are one: from base_link and from the finger tips, and a lone cube has no others.
    assert np.isfinite(scenes.target).all()
    alone = np.isnan(scenes.others[:, 0, 0])
    assert 0.3 < alone.mean() < 0.5


def test_a_place_in_the_image_is_shared_by_the_four_nearest_patches() -> None:
    places = np.array([[[0.5, 0.25], [0.0625, 0.9375]], [[1.2, 0.5], [np.nan, np.nan]]], np.float32)
    shares = spread(places).reshape(2, 2, 8, 8)
    np.testing.assert_allclose(shares[0, 0, 1:3, 3:5], 0.25)
    assert shares[0, 1, 7, 0] == 1.0
    np.testing.assert_allclose(shares[0].sum(axis=(1, 2)), 1.0)
    assert not shares[1].any()


def test_updates_lower_the_loss_and_leave_a_base_that_training_loads(
    scenes: Scenes, statistics: DatasetStatistics, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    training = Pretraining(scenes, seed=0)
    losses = [training.step(0.0) for _ in range(12)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    training.save(tmp_path / "base")
    trunk = {k: v for k, v in training.model.state_dict().items() if k.startswith("vision_backbone.featurizer.blocks")}
    loaded = built(tmp_path / "base", statistics).state_dict()
    for key, value in trunk.items():
        (found,) = [v for k, v in loaded.items() if k.replace(".base_layer", "").endswith(key)]
        torch.testing.assert_close(found, value)


def test_the_shipped_base_is_small_and_fits_the_demos_settings(statistics: DatasetStatistics) -> None:
    assert sum(path.stat().st_size for path in BASE_DIRECTORY.iterdir()) < 10_000_000
    model = built(BASE_DIRECTORY, statistics)
    assert sum(parameter.numel() for parameter in model.parameters()) > 500_000


def test_a_base_is_replaced_only_by_a_finished_one(
    scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the second update."""
    output, step = tmp_path / "base", Pretraining.step

    def stopped(training: Pretraining, share: float) -> float:
        if training.steps == 1:
            raise KeyboardInterrupt
        return step(training, share)

    torch.set_num_threads(1)
    output.mkdir()
    (output / "shipped").touch()
    monkeypatch.setattr(command, "render_in_parallel", lambda *_, **__: scenes)
    monkeypatch.setattr(command, "interrupt_on_ending_signals", lambda: None)
    monkeypatch.setattr(command, "_REPORT", 1)
    figures = dict.fromkeys(("alone_mm", "named_mm", "named_right"), 0.0)
    monkeypatch.setattr(Pretraining, "evaluate", lambda _: figures)
    monkeypatch.setattr(sys, "argv", ["base", "--output", str(output), "--steps", "2"])
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "step", stopped)
        assert command.main() == 130
    left = tmp_path / "base.unfinished"
    assert capsys.readouterr().err.endswith(f"is in {left}\n")
    assert (left / "model.safetensors").exists()
    assert [path.name for path in output.iterdir()] == ["shipped"]
    assert command.main() == 0
    assert (output / "model.safetensors").exists()
    assert not left.exists()


def test_too_few_scenes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--scenes is 10; expected more than 648"):
        make_base(tmp_path, scenes=10, steps=1, seed=0, workers=1, console=Console(file=io.StringIO()))
