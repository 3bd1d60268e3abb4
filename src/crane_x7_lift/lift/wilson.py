"""How sure a success rate is."""

from __future__ import annotations

import math


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Low and high end of the interval of a rate in [0, 1], for ``successes`` of ``trials``.

    z: half width in standard deviations, 1.96 for 95 %. Wilson (1927), without continuity correction; unlike the normal
    approximation it is right near 0 and 1. Raises ValueError unless 0 <= successes <= trials and trials > 0.
    """
    if not (trials > 0 and 0 <= successes <= trials):
        raise ValueError(f"{successes} successes of {trials} trials; expected at least one trial and no more successes")
    rate = successes / trials
    scale = 1 + z**2 / trials
    centre = (rate + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    # At the ends the formula gives 0 and 1 but for rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high
