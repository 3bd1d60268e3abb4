from __future__ import annotations

import pytest

from lift.wilson import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # n / (n + z²)
        (10, 10, 0.7225, 1.0),
        (98, 100, 0.9300, 0.9945),
    ],
)
def test_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=6e-5)


def test_it_holds_the_rate_and_mirrors() -> None:
    for successes in range(31):
        low, high = wilson_interval(successes, 30)
        assert 0.0 <= low <= successes / 30 <= high <= 1.0
        mirrored = wilson_interval(30 - successes, 30)
        assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


def test_a_wider_z_is_a_wider_interval() -> None:
    assert wilson_interval(5, 10, z=2.5758)[0] < wilson_interval(5, 10)[0]
    assert wilson_interval(5, 10, z=0.0) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_an_error(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {trials} trials"):
        wilson_interval(successes, trials)
