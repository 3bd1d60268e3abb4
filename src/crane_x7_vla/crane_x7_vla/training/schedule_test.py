from __future__ import annotations

import pytest

from crane_x7_vla.config.base import TrainingConfig
from crane_x7_vla.training.schedule import Schedule, warmup_steps


@pytest.mark.parametrize(
    ("training", "total", "steps", "said"),
    [
        (TrainingConfig(), 20_000, 1000, "as configured"),
        (TrainingConfig(), 500, 50, "limited to a tenth of 500 steps, from 1000"),
        (TrainingConfig(warmup_steps=20), 500, 20, "as configured"),
        (TrainingConfig(warmup_steps=100), 500, 50, "limited to a tenth"),
        (TrainingConfig(warmup_steps=0), 500, 0, "as configured"),
        (TrainingConfig(warmup_ratio=0.3), 500, 150, "0.3 of 500 steps"),
        (TrainingConfig(), 5, 0, "limited"),
    ],
)
def test_the_warmup_is_at_most_a_tenth_of_the_run_unless_a_ratio_is_given(
    training: TrainingConfig, total: int, steps: int, said: str
) -> None:
    found, why = warmup_steps(training, total)
    assert found == steps
    assert said in why


def test_warmup_then_constant() -> None:
    schedule = Schedule(kind="constant", warmup=4, total_steps=20, final_ratio=0.0)
    assert [schedule.factor(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert schedule.factor(19) == 1


def test_cosine_falls_from_the_peak_to_the_final_share_and_stays_there() -> None:
    schedule = Schedule(kind="cosine", warmup=10, total_steps=110, final_ratio=0.1)
    factors = [schedule.factor(step) for step in range(10, 111)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert factors[50] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1)
    assert schedule.factor(500) == pytest.approx(0.1)


def test_cosine_ends_with_the_time_budget_if_that_ends_first() -> None:
    schedule = Schedule(kind="cosine", warmup=0, total_steps=1000, final_ratio=0.0)
    assert schedule.factor(10, time_share=0.5) == pytest.approx(0.5)
    assert schedule.factor(900, time_share=0.5) == schedule.factor(900)
    assert schedule.factor(10, time_share=1.2) == pytest.approx(0.0)
