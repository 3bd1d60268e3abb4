"""A camera that repeats one picture with new stamps, as some drivers do when the device hangs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crane_x7_log.sampling import Sample
from crane_x7_vla.protocol import NANOSECONDS

# A joint that moves this far changes what any camera that looks at the arm sees, rad.
MOVED_RAD = 0.1


@dataclass(frozen=True, slots=True)
class _Seen:
    image: bytes
    stamp_ns: int
    state: NDArray[np.float32]


class FrozenCameraWatch:
    """Compares each sample's images with the last that differed. A still scene is fine as long as the arm is still."""

    def __init__(self, *, labels: Mapping[str, str], limit_s: float) -> None:
        """limit_s: how long one picture may last while a joint moves by ``MOVED_RAD``; 0 allows it for ever."""
        self._labels = labels
        self._limit_s = limit_s
        self._seen: dict[str, _Seen] = {}

    def fault(self, sample: Sample) -> str | None:
        """What is wrong after this sample, None when nothing is."""
        for camera, image in sample.images.items():
            seen = self._seen.get(camera)
            if seen is None or seen.image != image.value:
                self._seen[camera] = _Seen(image.value, sample.stamp_ns, sample.state.value)
                continue
            lasted_s = (sample.stamp_ns - seen.stamp_ns) / NANOSECONDS
            moved = float(np.abs(sample.state.value - seen.state).max())
            if 0 < self._limit_s <= lasted_s and moved > MOVED_RAD:
                return (
                    f"{self._labels[camera]} shows one and the same picture for {lasted_s:.1f} s while the arm "
                    f"moved by {moved:.2f} rad: restart the camera"
                )
        return None
