from __future__ import annotations

import numpy as np
import pytest

from crane_x7_vla.trajectory import Setpoint


def test_holds_what_it_started_with() -> None:
    setpoint = Setpoint(np.array([1.0, 2.0]), 5.0)
    for stamp in (0.0, 5.0, 100.0):
        np.testing.assert_array_equal(setpoint.at(stamp), [1.0, 2.0])


def test_follows_points_linearly_and_holds_the_last() -> None:
    setpoint = Setpoint(np.array([0.0]), 0.0)
    setpoint.replace(1.0, np.array([0.1, 0.3]), np.array([[1.0], [3.0]]))
    assert setpoint.at(1.05)[0] == pytest.approx(0.5)
    assert setpoint.at(1.2)[0] == pytest.approx(2.0)
    assert setpoint.at(9.0)[0] == pytest.approx(3.0)


def test_a_new_trajectory_starts_from_the_target_in_force() -> None:
    setpoint = Setpoint(np.array([0.0]), 0.0)
    setpoint.replace(0.0, np.array([1.0]), np.array([[10.0]]))
    setpoint.replace(0.5, np.array([0.5]), np.array([[0.0]]))
    assert setpoint.at(0.5)[0] == pytest.approx(5.0)
    assert setpoint.at(0.75)[0] == pytest.approx(2.5)


def test_a_first_point_without_delay_is_the_target_at_once() -> None:
    setpoint = Setpoint(np.array([0.0]), 0.0)
    setpoint.replace(1.0, np.array([0.0]), np.array([[1.0]]))
    setpoint.replace(1.02, np.array([0.0, 0.1]), np.array([[2.0], [3.0]]))
    for stamp, value in ((0.99, 0.0), (1.0, 1.0), (1.01, 1.0), (1.02, 2.0), (1.07, 2.5), (9.0, 3.0)):
        assert setpoint.at(stamp)[0] == pytest.approx(value)


def test_what_was_in_force_before_the_newest_trajectory_stays_known() -> None:
    """The recorder asks for the target at the end of a step after the next command has come."""
    setpoint = Setpoint(np.array([0.0]), 0.0)
    setpoint.replace(0.0, np.array([0.1]), np.array([[1.0]]))
    setpoint.replace(0.1, np.array([0.1]), np.array([[2.0]]))
    setpoint.replace(0.2, np.array([0.1]), np.array([[3.0]]))
    assert setpoint.at(0.05)[0] == pytest.approx(0.5)
    assert setpoint.at(0.1)[0] == pytest.approx(1.0)
    assert setpoint.at(0.15)[0] == pytest.approx(1.5)


def test_memory_stays_bounded() -> None:
    setpoint = Setpoint(np.array([0.0]), 0.0)
    for i in range(10_000):
        setpoint.replace(i * 0.02, np.array([0.02]), np.array([[float(i)]]))
    assert len(setpoint._times) < 300  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("times", "positions"),
    [
        ([], np.zeros((0, 1))),
        ([-0.1], [[1.0]]),
        ([0.0, 0.0], [[1.0], [2.0]]),
        ([0.2, 0.1], [[1.0], [2.0]]),
        ([0.1], [[1.0, 2.0]]),
    ],
)
def test_a_trajectory_that_makes_no_sense_is_refused(times: list[float], positions: object) -> None:
    with pytest.raises(ValueError, match="trajectory"):
        Setpoint(np.array([0.0]), 0.0).replace(0.0, np.array(times), np.array(positions))


def test_rounding_of_stamps_never_changes_a_target_by_a_bit() -> None:
    """Lockstep commands of a 10 Hz policy arrive bit for bit whatever the clock reads."""
    rng = np.random.default_rng(0)
    for origin in (0.0, 1.0, 12345.678, 1.7e9):
        setpoint = Setpoint(rng.normal(size=8), origin)
        for k in range(200):
            stamp, end = ((round(origin * 1e9) + round(j * 1e8)) * 1e-9 for j in (k, k + 1))
            target = rng.normal(size=8)
            setpoint.replace(stamp, np.array([0.1]), target[None])
            np.testing.assert_array_equal(setpoint.at(end), target)


def test_a_slow_motion_stays_known_however_long_ago_it_began() -> None:
    setpoint = Setpoint(np.array([0.0]), 0.0)
    setpoint.replace(0.0, np.array([10.0]), np.array([[10.0]]))
    setpoint.replace(8.0, np.array([1.0]), np.array([[0.0]]))
    assert setpoint.at(7.5)[0] == pytest.approx(7.5)
