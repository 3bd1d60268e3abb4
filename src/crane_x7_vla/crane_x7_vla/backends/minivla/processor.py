"""MiniVLA: observation to tensors, and predicted chunk to joint targets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crane_x7_vla.backends.action_units import ActionUnits
from crane_x7_vla.backends.base import Sample
from crane_x7_vla.backends.minivla.config import MiniVLAConfig
from crane_x7_vla.backends.prismatic_processor import PrismaticProcessor, check_vocabulary
from crane_x7_vla.checkpoints.layouts import Assets
from crane_x7_vla.types import Observation


class MiniVLAProcessor(PrismaticProcessor):
    """See ``PrismaticProcessor``. pixel_values are the frames from the oldest to the newest, the cameras of each in
    order (openvla-mini datasets.py:41-57). ``observation.past`` may be shorter than the history, as an episode begins.
    """

    def __init__(self, config: MiniVLAConfig, *, units: ActionUnits, assets: Assets) -> None:
        check_vocabulary(assets, {})
        super().__init__(config, units=units, assets=assets)
        self._history = config.history

    def _inputs(self, observation: Observation) -> Sample:
        for frame in observation.past[: self._history]:
            self._images.check(frame)
        return super()._inputs(observation)

    def _pixels(self, observation: Observation, rng: np.random.Generator | None) -> Tensor:
        seed = None if rng is None else int(rng.integers(2**63))  # all frames are cropped and coloured alike
        return torch.cat(
            [
                self._images.pixels(frame, None if seed is None else np.random.default_rng(seed))
                for frame in self._frames(observation)
            ]
        )

    def _raw(self, observation: Observation) -> Tensor:
        return torch.cat([self._images.raw(frame) for frame in self._frames(observation)])

    def _frames(self, observation: Observation) -> list[Observation]:
        """From the oldest to the newest; what is missing is replaced by the newest, as in the reference
        (run_libero_eval.py:213-225)."""
        earlier = observation.past[: self._history]
        missing = self._history - len(earlier)
        return [*[observation] * missing, *reversed(earlier), observation]
