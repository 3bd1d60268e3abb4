"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """float32 averages of a model's parameters that are trained; decay 0 switches it off and costs nothing.

    Early on the decay is (1 + n) / (10 + n) after n updates, so that the start is forgotten
    (tf.train.ExponentialMovingAverage's ``num_updates``).
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._trained = dict(trained) if decay else {}
        self._averages = {name: p.detach().float().clone() for name, p in self._trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights into the average."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for name, parameter in self._trained.items():
            self._averages[name].lerp_(parameter.float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averages while the context lasts."""
        current = {name: parameter.detach().clone() for name, parameter in self._trained.items()}
        self._assign(self._averages)
        try:
            yield
        finally:
            self._assign(current)

    def state(self) -> dict[str, Any]:
        """For a checkpoint; tensors and numbers only."""
        return {"updates": self._updates, "averages": self._averages}

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state``; averages that were not kept before start from the current weights."""
        self._updates = state["updates"]
        for name, average in self._averages.items():
            average.copy_(state["averages"].get(name, self._trained[name].detach()))

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(values[name])
