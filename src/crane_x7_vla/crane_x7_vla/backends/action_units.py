"""Between joint targets in rad and the numbers that a model is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crane_x7_vla.backends.base import Batch, Sample
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.errors import CheckpointError, ConfigError, DataError
from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.transforms.action import (
    Normalization,
    absolute_from,
    normalize,
    relative_to,
    unnormalize,
    value_range,
)
from crane_x7_vla.transforms.state import normalize_state
from crane_x7_vla.types import Observation

_BOUNDED_DEVIATIONS = 3.0  # one would cut off a third of what is distributed normally


class ActionUnits:
    """Scales states and actions of one robot by one data set's statistics, and undoes it.

    action_form: relative or absolute. action_source: what the actions of the data are, commanded or next_state.
    bounded: the model's actions end at -1 and 1, as tokens do; zscore then reaches three standard deviations.
    Raises CheckpointError where the statistics are of another number of joints.
    """

    def __init__(
        self,
        robot: RobotSpec,
        statistics: DatasetStatistics,
        *,
        action_form: str,
        normalization: Normalization,
        span_floor: float,
        action_source: str,
        bounded: bool = False,
    ) -> None:
        for what, size in (("action", statistics.action.size), ("state", statistics.state.size)):
            if size != robot.size:
                raise CheckpointError(
                    f"the {what} statistics have {size} entries, {robot.name} has {robot.size} joints; "
                    "compute statistics of this robot's episodes"
                )
        self.robot = robot
        self.action_range = value_range(
            statistics.action,
            normalization,
            span_floor=span_floor,
            deviations=_BOUNDED_DEVIATIONS if bounded else 1.0,
        )
        self._state_range = value_range(statistics.state, normalization, span_floor=span_floor)
        self._clips = normalization == "bounds_q99" or (bounded and normalization == "zscore")
        self._clips_states = normalization != "zscore"
        self._relative = action_form == "relative"
        self._action_source = action_source

    def check(self, observation: Observation) -> None:
        """Raise DataError where the observation is not of this robot, or holds a number that is not finite."""
        if observation.state.size != self.robot.size:
            raise DataError(
                f"the state has {observation.state.size} joints, {self.robot.name} has {self.robot.size}: "
                f"{', '.join(self.robot.joint_names)}"
            )
        for what, values in (("measured state", observation.state), ("commanded target", observation.commanded)):
            if values is not None and not np.isfinite(values).all():
                wrong = np.array(self.robot.joint_names)[~np.isfinite(values)]
                raise DataError(f"the {what} of {', '.join(wrong)} is NaN or infinite; expected an angle in rad")

    def state(self, observation: Observation) -> np.ndarray:
        """float32 [S]: the measured state in model units."""
        return normalize_state(observation.state, self._state_range, clip=self._clips_states)

    def labels(
        self, observation: Observation, actions: np.ndarray, *, action_horizon: int, is_pad: np.ndarray | None
    ) -> Sample:
        """labels float32 [T, A] in model units of absolute targets [T, A] rad, and is_pad bool [T].

        What percentiles leave outside [-1, 1] is clipped, where ``bounded`` also what deviations leave. Raises
        DataError for a chunk of another shape.
        """
        expected = (action_horizon, self.robot.size)
        if actions.shape != expected:
            raise DataError(
                f"the action chunk has shape {list(actions.shape)}; expected {list(expected)}, action_horizon by joints"
            )
        if self._relative:
            actions = relative_to(actions, observation.state, self.robot.gripper_index)
        labels = normalize(actions, self.action_range)
        if self._clips:
            labels = np.clip(labels, -1, 1)
        padded = np.zeros(len(actions), dtype=np.bool_) if is_pad is None else is_pad
        return {"labels": torch.from_numpy(labels), "is_pad": torch.from_numpy(padded)}

    def half_span(self, device: torch.device) -> Tensor:
        """float32 [A]: rad per model unit (the gripper's too)."""
        return torch.from_numpy(self.action_range.half_span).to(device)

    def clipped_share(self, batch: Batch) -> dict[str, Tensor]:
        """{"clipped": share of the label entries that lie at or beyond the range}; nothing where none are clipped."""
        if not self._clips:
            return {}
        keep = (~batch["is_pad"]).float()[..., None]  # choosing entries instead would wait for the GPU
        clipped = (batch["labels"].abs() >= 1) * keep
        return {"clipped": clipped.sum() / (keep.sum() * clipped.shape[-1])}

    def targets(self, values: Tensor, observations: Sequence[Observation]) -> np.ndarray:
        """Model units [b, T, A] to absolute targets float32 [b, T, A] rad.

        A relative chunk is added to the state where the model learnt commanded targets, and to the target in force
        where it learnt next states: an arm that sags would sink with every step otherwise.
        """
        actions = unnormalize(values.detach().float().cpu().numpy(), self.action_range)
        if not self._relative:
            return actions
        anchors = np.stack([self._anchor(observation) for observation in observations])
        return absolute_from(actions, anchors, self.robot.gripper_index)

    def _anchor(self, observation: Observation) -> np.ndarray:
        if self._action_source == "commanded":
            return observation.state
        if self._action_source == "auto":
            raise ConfigError(
                "data.action_source is still auto, so it is not known what the model learnt; "
                "training replaces it by commanded or next_state in the checkpoint's config.yaml"
            )
        if observation.commanded is None:
            raise DataError(
                "the model learnt next states, so its actions are offsets from the target in force, but the "
                "observation has no commanded target; send the arm its measured state as a first target"
            )
        return observation.commanded
