"""The estimate of fine-tuning's memory, from shapes alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crane_x7_vla.backends.openvla.config import OpenVLAConfig
from crane_x7_vla.benchmarks.training_memory import kept_tensors, main, memory_of, size_of, training_memory


def test_what_is_kept_is_counted_once_and_without_weights() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.ones(3, 8)
    with kept_tensors({memory_of(parameter) for parameter in model.parameters()}) as kept:
        model(x)
    assert size_of(kept.values()) == 4 * (3 * 8 + 3 * 16)


def test_openvla_with_adapters_fits_24_gib_with_checkpointing() -> None:
    parts = training_memory(OpenVLAConfig(), batch_size=1)
    assert sum(parts.values()) < 24 * 2**30
    weights, trained, gradients, moments = list(parts.values())[:4]
    assert weights == 2 * 7_498_156_704
    assert moments == 2 * trained == 2 * gradients


def test_checkpointing_keeps_less_and_batches_keep_more() -> None:
    kept = "kept for the backward pass"
    tiny = OpenVLAConfig.tiny()
    once, twice, without = (
        training_memory(tiny, batch_size=size, checkpointing=checkpointing)[kept]
        for size, checkpointing in ((1, True), (2, True), (1, False))
    )
    assert once < without
    assert 1.8 * once < twice < 2.2 * once


def test_the_command_says_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    for memory, verdict in (("24", "fits into 24 GiB"), ("0.5", "does not fit into 0.5 GiB")):
        assert main(["--backend", "minivla", "--tiny", "--memory", memory]) == 0
        assert f"estimate: {verdict}; not measured on a GPU" in capsys.readouterr().out


@pytest.mark.parametrize("memory", ["-3", "0", "nan"])
def test_no_memory_at_all_is_one_line(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--backend", "minivla", "--tiny", "--memory", memory]) == 2
    assert capsys.readouterr().err == f"error: --memory is {memory}; expected GiB above 0\n"
