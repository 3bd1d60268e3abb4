"""A simulator that waits for its commands is recorded instant by instant."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_log.recorder import RefusedError
from crane_x7_log.recorder_rig_test import LOCKSTEP, MS, Make, Rig, state_at


def run_lockstep(rig: Rig, start_ms: int, n: int) -> None:
    for k in range(n):
        rig.instant((start_ms + 100 * k) * MS)
    rig.instant((start_ms + 100 * n) * MS, commands=False)


@pytest.mark.parametrize("reset_first", [False, True])
def test_lockstep_records_every_instant_exactly(make: Make, reset_first: bool) -> None:
    rig = make(LOCKSTEP)
    run_lockstep(rig, 0, 3)
    if reset_first:
        rig.instant(1300 * MS, commands=False)
        rig.start()
    else:
        rig.start()
        rig.instant(1300 * MS, commands=False)
    run_lockstep(rig, 1300, 20)
    rig.recorder.stop(rig.now)
    episode, metadata = rig.saved()
    np.testing.assert_array_equal(np.round(episode.stamp * 1000), 1300 + 100 * np.arange(20))
    assert episode.commanded is not None
    for k in range(20):
        stamp = (1300 + 100 * k) * MS
        np.testing.assert_array_equal(episode.state[k], state_at(stamp))
        np.testing.assert_array_equal(episode.action[k], state_at(stamp + 100 * MS))
        np.testing.assert_array_equal(episode.commanded[k], state_at(stamp) + np.float32(0.5))
    assert set(metadata.missed.values()) == {0}
    assert metadata.end_reason == "stopped by the operator"


def test_lockstep_waits_after_stop_for_messages_on_their_way(make: Make) -> None:
    rig = make(LOCKSTEP)
    rig.start()
    for k in range(5):
        rig.instant(k * 100 * MS)
    rig.recorder.stop(rig.now)
    rig.instant(500 * MS)
    rig.instant(600 * MS, commands=False)
    assert rig.recorder.status().state == "recording"
    with pytest.raises(RefusedError, match="being saved already"):
        rig.recorder.stop(rig.now)
    episode, _ = rig.saved()
    assert len(episode.stamp) == 6


def test_lockstep_reset_right_after_stop_is_no_fault(make: Make) -> None:
    rig = make(LOCKSTEP)
    rig.start()
    run_lockstep(rig, 0, 5)
    rig.recorder.stop(rig.now)
    rig.instant(1500 * MS, commands=False)
    episode, metadata = rig.saved()
    assert len(episode.stamp) == 5
    assert metadata.end_reason == "stopped by the operator"
    rig.start()
    run_lockstep(rig, 1500, 5)
    rig.recorder.stop(rig.now)
    assert rig.saved()[0].stamp[0] == 1.5


def test_lockstep_reset_without_stop_ends_the_episode(make: Make) -> None:
    rig = make(LOCKSTEP)
    rig.start()
    run_lockstep(rig, 0, 5)
    rig.instant(1500 * MS)
    episode, metadata = rig.saved()
    assert len(episode.stamp) == 5
    assert "the simulator was reset" in metadata.end_reason
