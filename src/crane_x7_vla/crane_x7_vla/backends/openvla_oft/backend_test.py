"""What is particular to the OpenVLA-OFT backend; contract_test.py has what all backends share."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from crane_x7_vla.backends.openvla_oft.backend import OpenVLAOFTBackend
from crane_x7_vla.backends.openvla_oft.config import ActionHeadConfig, OpenVLAOFTConfig
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.types import Observation

torch.set_num_threads(1)


def test_a_head_that_does_not_fit_is_left_aside_with_a_warning_that_names_both_sizes(
    tiny_base: Path, tiny_statistics: DatasetStatistics, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = OpenVLAOFTConfig.tiny()
    config = dataclasses.replace(
        tiny,
        openvla_oft=dataclasses.replace(
            tiny.openvla_oft, model_id=str(tiny_base), action_head=ActionHeadConfig(hidden_dim=32)
        ),
    )
    with caplog.at_level(logging.WARNING):
        OpenVLAOFTBackend(config, robot=CRANE_X7, statistics=tiny_statistics).build()
    (said,) = caplog.messages
    assert "action_head of the base does not fit" in said
    assert "model.fc1.weight is [64, 768] instead of [32, 768]" in said
    assert "trained anew" in said


@pytest.mark.parametrize("normalization", ["bounds_q99", "bounds", "zscore"])
def test_clipped_is_measured_where_labels_are_clipped(
    normalization: str, tiny_statistics: DatasetStatistics, make_observation: Callable[[int], Observation]
) -> None:
    tiny = OpenVLAOFTConfig.tiny()
    settings = dataclasses.replace(tiny.openvla_oft, normalization=normalization)  # pyright: ignore[reportArgumentType]
    config = dataclasses.replace(tiny, openvla_oft=settings)
    backend = OpenVLAOFTBackend(config, robot=CRANE_X7, statistics=tiny_statistics)
    seen = make_observation(0)
    actions = np.repeat(seen.state[None], config.action_horizon, axis=0)
    batch = backend.processor.collate([backend.processor.encode(seen, actions)])
    with torch.inference_mode():
        metrics = backend.loss(backend.build().eval(), batch).metrics
    assert ("clipped" in metrics) == (normalization == "bounds_q99")
