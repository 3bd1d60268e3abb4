"""What the data say about a config that does not fit them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crane_x7_vla.backends import BACKENDS
from crane_x7_vla.backends.minivla.config import MiniVLAConfig, MultiImageConfig
from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.errors import DataError
from crane_x7_vla.training.arguments import TrainCommand, parse_command
from crane_x7_vla.training.loading import prepare_data

Record = Callable[..., Path]


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_the_flags_that_a_missing_camera_names_are_all_that_is_to_be_typed(
    backend: str, tmp_path: Path, record_episodes: Record
) -> None:
    root = record_episodes(tmp_path, 3, cameras=("side",))

    def config(*flags: str) -> VLAConfig:
        command = parse_command(["train", backend, "--data-root", str(root), *flags], environ={})
        assert isinstance(command, TrainCommand)
        return command.config

    with pytest.raises(DataError, match=r"has no camera 'primary'; it has: side\. Choose among them, ") as error:
        prepare_data(config())
    (flags,) = re.findall(r"for instance: (.*)$", str(error.value))
    assert [camera.name for camera in prepare_data(config(*flags.split())).config.cameras] == ["side"]


def test_a_history_longer_than_every_episode_is_said(
    tmp_path: Path, record_episodes: Record, caplog: pytest.LogCaptureFixture
) -> None:
    root = record_episodes(tmp_path, 3, n_steps=6)
    tiny = MiniVLAConfig.tiny()
    config = replace(tiny, data=replace(tiny.data, data_root=str(root)))
    with caplog.at_level(logging.WARNING):
        for frames in (6, 7):
            images = MultiImageConfig(image_history=frames)
            prepare_data(replace(config, minivla=replace(config.minivla, multi_image=images)))
    (said,) = caplog.messages
    assert "sees 6 frames before the newest, but the longest training episode has 6 steps" in said
