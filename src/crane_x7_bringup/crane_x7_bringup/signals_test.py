from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from crane_x7_bringup.signals import interrupt_on_ending_signals

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_each_of_them_interrupts(number: signal.Signals) -> None:
    interrupt_on_ending_signals()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_nohup_is_respected_and_an_inherited_deafness_to_ctrl_c_is_not() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    interrupt_on_ending_signals()
    signal.raise_signal(signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
