"""What tests of the recorder share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from crane_x7_log.config import RecorderConfig
from crane_x7_log.recorder import Recorder
from crane_x7_log.recorder_rig_test import TOPICS, Make, Rig
from crane_x7_log.writer import EpisodeThread


@pytest.fixture
def make(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Make]:
    rigs: list[Rig] = []
    caplog.set_level(logging.INFO)

    def make_rig(config: RecorderConfig) -> Rig:
        publishers = dict.fromkeys(TOPICS, 1)
        writer = EpisodeThread(tmp_path, min_free_bytes=1000)
        recorder = Recorder(config, writer, count_publishers=publishers.__getitem__)
        rigs.append(Rig(recorder, writer, tmp_path, caplog, publishers))
        return rigs[-1]

    yield make_rig
    for rig in rigs:
        rig.writer.close(30)
