from __future__ import annotations

import pytest
import torch

from crane_x7_vla.training.ema import Ema


def test_the_average_follows_the_weights_slowly_and_forgets_the_start() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    ema = Ema({"w": weight}, 0.9)
    expected = torch.zeros(2)
    for step in range(1, 40):
        weight.data += 1
        ema.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.data
    with ema.applied():
        assert torch.allclose(weight, expected)
    assert weight.tolist() == [39, 39]


def test_weights_come_back_after_an_error() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    ema = Ema({"w": weight}, 0.5)
    weight.data += 1
    with pytest.raises(RuntimeError, match="saving failed"), ema.applied():
        raise RuntimeError("saving failed")
    assert weight.item() == 1


def test_switched_off_it_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    ema = Ema({"w": weight}, 0.0)
    weight.data += 1
    ema.update()
    with ema.applied():
        assert weight.item() == 2
    assert ema.state()["averages"] == {}


def test_switched_on_when_a_run_goes_on_it_starts_from_the_current_weights() -> None:
    weight = torch.nn.Parameter(torch.full((1,), 5.0))
    ema = Ema({"w": weight}, 0.5)
    ema.load({"updates": 10, "averages": {}})
    with ema.applied():
        assert weight.item() == 5
