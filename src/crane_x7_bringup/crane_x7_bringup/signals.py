"""The signals that ask a command to end: Ctrl-C, ``kill``, and a terminal that is closed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def on_ending_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Have ``handler`` called for them.

    A shell that starts a command in the background has SIGINT ignored, which must not be inherited; SIGHUP that is
    ignored was asked for by nohup.
    """
    for number in _ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def interrupt_on_ending_signals() -> None:
    """All of them raise KeyboardInterrupt, as Ctrl-C does."""
    on_ending_signals(signal.default_int_handler)
