from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from crane_x7_vla.conftest import tiny_base, tiny_checkpoint, tiny_statistics

__all__ = ["hang_up_is_heard", "tiny_base", "tiny_checkpoint", "tiny_statistics"]


@pytest.fixture(autouse=True, scope="session")
def hang_up_is_heard() -> Iterator[None]:
    """Whatever started the tests: nohup has SIGHUP ignored, which the commands under test would inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
