# pyright: strict, reportMissingTypeStubs=false
"""Which steps each batch holds: a function of the seed and the batch's number alone.

So a resumed run draws what the uninterrupted one would have drawn, whatever workers prefetched, and N processes draw
together what one process would with N times the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Draw = tuple[int, int]
"""(number of the step in the data set, number of the draw in the run); the second seeds the augmentation."""


class _Stream:
    """An endless sequence over ``indices``, in a new random order each time round."""

    def __init__(self, indices: np.ndarray, *, seed: int, shuffle: bool) -> None:
        self._indices = indices
        self._seed = seed
        self._shuffle = shuffle
        self._round = -1
        self._order = indices

    def __getitem__(self, position: int) -> int:
        number, offset = divmod(position, len(self._indices))
        if number != self._round:
            rng = np.random.default_rng((self._seed, number))
            self._order = rng.permutation(self._indices) if self._shuffle else self._indices
            self._round = number
        return int(self._order[offset])


class StepSampler(Sampler[list[Draw]]):
    """Endless batches of ``Draw``, this process's share of each.

    n_steps: steps of the data set. starts: bool [n_steps], the first steps of episodes, of which every batch holds a
    share of ``start_fraction``. first_batch: where to
    go on. rank, world: this process takes every world-th entry of the batches of ``world * batch_size``.
    """

    def __init__(
        self,
        n_steps: int,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        starts: np.ndarray | None = None,
        start_fraction: float = 0.0,
        first_batch: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._together = batch_size * world
        self._n_starts = round(start_fraction * self._together) if starts is not None else 0
        self._all = _Stream(np.arange(n_steps), seed=seed, shuffle=shuffle)
        self._starts = _Stream(np.flatnonzero(starts), seed=seed + 1, shuffle=shuffle) if starts is not None else None
        self._first_batch = first_batch
        self._rank = rank
        self._world = world

    def __iter__(self) -> Iterator[list[Draw]]:
        number = self._first_batch
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[Draw]:
        """This process's share of batch ``number``."""
        draws: list[Draw] = []
        for slot in range(self._rank, self._together, self._world):
            if self._starts is not None and slot < self._n_starts:
                index = self._starts[number * self._n_starts + slot]
            else:
                index = self._all[number * (self._together - self._n_starts) + slot - self._n_starts]
            draws.append((index, number * self._together + slot))
        return draws
