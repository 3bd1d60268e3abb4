"""One episode in the making: from the messages of its time to its steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from crane_x7_log.commands import CommandTracker
from crane_x7_log.config import RecorderConfig
from crane_x7_log.frozen import FrozenCameraWatch
from crane_x7_log.lockstep import LockstepSampler
from crane_x7_log.sampling import COMMANDS, STATE, GridSampler, Sampler, Transition
from crane_x7_vla.data.episode import CameraMetadata, EpisodeMetadata, Step, encode_jpeg
from crane_x7_vla.protocol import NANOSECONDS


class Session:
    """Encodes, pairs and checks what belongs to one episode.

    dropped: per source, messages that could not be used. fault: why no further step will come, None while all is well.
    """

    def __init__(
        self,
        config: RecorderConfig,
        *,
        labels: Mapping[str, str],
        tracker: CommandTracker,
        instruction: str,
        seed: int | None,
        started_at: str,
    ) -> None:
        """labels: what messages call each source. tracker: follows the commands, also outside of episodes."""
        self._config = config
        self._tracker = tracker
        self.instruction = instruction
        self._seed = seed
        self._started_at = started_at
        self._sampler = _sampler(config, labels)
        self._watch = FrozenCameraWatch(labels=labels, limit_s=config.frozen_camera_s)
        self._frozen: str | None = None
        self._sizes: dict[str, CameraMetadata] = {}
        self._with_commanded: bool | None = None
        self.dropped = dict.fromkeys((STATE, *config.cameras, *COMMANDS), 0)

    @property
    def fault(self) -> str | None:
        return self._frozen or self._sampler.fault

    @property
    def missed(self) -> Mapping[str, int]:
        """Per source, instants for which nothing near enough came."""
        return self._sampler.missed

    @property
    def lacks_commanded(self) -> bool:
        """Commands came after the first step of an episode that had begun without."""
        return self._with_commanded is False and self._config.commanded != "off" and self._tracker.commanded

    def waiting_for(self) -> list[str]:
        """Sources without which the next step cannot come."""
        return self._sampler.waiting_for()

    def hint(self) -> str:
        """Why they may not come, empty when nothing is known."""
        return self._sampler.hint()

    def add_state(self, stamp_ns: int, state: NDArray[np.float32]) -> str | None:
        """float32 [S] rad; returns why it could not be used, None when it could."""
        return None if self._sampler.add_state(stamp_ns, state) else _not_later(stamp_ns)

    def add_image(self, camera: str, stamp_ns: int, rgb: NDArray[np.uint8]) -> str | None:
        """uint8 [H, W, 3] RGB, encoded here; returns why it could not be used, None when it could."""
        height, width, _ = rgb.shape
        size = CameraMetadata(width=width, height=height, topic=self._config.topics[camera])
        first = self._sizes.setdefault(camera, size)
        if first != size:
            return f"a picture of {width} x {height} pixels in an episode of {first.width} x {first.height}"
        jpeg = encode_jpeg(rgb, self._config.jpeg_quality)
        return None if self._sampler.add_image(camera, stamp_ns, jpeg) else _not_later(stamp_ns)

    def add_command(self, part: str, stamp_ns: int) -> None:
        """That the tracker has followed a command of that stamp."""
        self._sampler.add_command(part, stamp_ns)

    def steps(self, *, last: bool = False) -> list[Step]:
        """Steps that have become certain. last: nothing more will be added, so give the rest."""
        steps: list[Step] = []
        for transition in self._sampler.flush() if last else self._sampler.poll():
            if self._frozen is None:
                steps.append(self._step(transition))
                self._frozen = self._watch.fault(transition.sample)
        return steps

    def metadata(self) -> EpisodeMetadata:
        """What is known once the first step is there."""
        config = self._config
        return EpisodeMetadata(
            robot=config.robot.name,
            hz=config.hz,
            instruction=self.instruction,
            cameras={camera: self._sizes[camera] for camera in config.cameras},
            joint_names=config.robot.joint_names,
            jpeg_quality=config.jpeg_quality,
            started_at=self._started_at,
            seed=self._seed,
        )

    def _step(self, transition: Transition) -> Step:
        sample = transition.sample
        if self._with_commanded is None:
            self._tracker.hold(sample.state.value, sample.stamp_ns)
            self._with_commanded = self._config.lockstep or (
                self._config.commanded != "off" and self._tracker.commanded
            )
        return Step(
            images={camera: image.value for camera, image in sample.images.items()},
            image_stamps={camera: image.stamp_ns / NANOSECONDS for camera, image in sample.images.items()},
            state=sample.state.value,
            state_stamp=sample.state.stamp_ns / NANOSECONDS,
            action=transition.next_state,
            commanded=self._tracker.at(transition.next_stamp_ns) if self._with_commanded else None,
            stamp=sample.stamp_ns / NANOSECONDS,
            instruction=self.instruction,
        )


def _sampler(config: RecorderConfig, labels: Mapping[str, str]) -> Sampler:
    period_ns = round(NANOSECONDS / config.hz)
    if config.lockstep:
        return LockstepSampler(config.cameras, labels=labels, period_ns=period_ns)
    camera_ns = round(config.camera_max_age_s * NANOSECONDS)
    return GridSampler(
        config.cameras,
        labels=labels,
        period_ns=period_ns,
        tolerance_ns=round(config.tolerance_s * NANOSECONDS),
        max_age_ns={STATE: round(config.joint_max_age_s * NANOSECONDS), **dict.fromkeys(config.cameras, camera_ns)},
    )


def _not_later(stamp_ns: int) -> str:
    return f"its stamp {stamp_ns / NANOSECONDS:.3f} s is not later than the one before"
