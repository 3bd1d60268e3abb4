"""What an episode holds, and what an operator may ask for when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crane_x7_log.recorder import RefusedError
from crane_x7_log.recorder_rig_test import CONFIG, LOCKSTEP, MS, Make, state_at
from crane_x7_vla.data.episode import EpisodeFile, decode_jpeg, list_partials
from crane_x7_vla.errors import ConfigError


def test_an_episode_holds_what_was_seen_at_its_instants(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 500)
    assert rig.recorder.status().waiting_for == ()
    assert rig.start(seed=3) == "recording"
    rig.run(500, 2000)
    assert rig.recorder.status().state == "recording"
    rig.recorder.mark_success(True)
    assert "episode_0" in rig.recorder.stop(rig.now)
    episode, metadata = rig.saved()
    np.testing.assert_allclose(np.diff(episode.stamp), 0.1, atol=1e-9)
    for k, stamp in enumerate(episode.stamp):
        np.testing.assert_array_equal(episode.state[k], state_at(round(stamp * 1e9)))
        seen = EpisodeFile(episode.path).step(k).image_stamps["wrist"]
        assert abs(seen - stamp) <= 0.0201
        assert abs(int(decode_jpeg(episode.images["wrist"][k])[0, 0, 0]) - round(seen * 100) % 256) <= 2
    np.testing.assert_array_equal(episode.action[:-1], episode.state[1:])
    np.testing.assert_array_equal(episode.action[-1], state_at(round((episode.stamp[-1] + 0.1) * 1e9)))
    assert 0.45 <= episode.stamp[0] <= 0.51
    assert episode.stamp[-1] >= 1.75
    assert episode.commanded is None
    assert (metadata.seed, metadata.success, metadata.hz) == (3, True, 10.0)
    assert metadata.cameras["wrist"].topic == "/camera_wrist/color/image_raw"
    assert (metadata.cameras["wrist"].width, metadata.cameras["wrist"].height) == (24, 16)
    assert metadata.end_reason == "stopped by the operator"
    assert set(metadata.missed.values()) | set(metadata.dropped.values()) == {0}
    assert metadata.started_at == "2026-01-01T00:00:00+00:00"


def test_discard_leaves_nothing_and_the_next_episode_takes_its_number(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1200)
    assert "episode_0" in rig.recorder.discard()
    with pytest.raises(RefusedError, match="discarding"):
        rig.start()
    rig.settle()
    assert rig.recorder.status().last == rig.recorder.status().last
    assert not list(rig.root.iterdir())
    rig.run(1200, 1500)
    rig.start()
    rig.run(1500, 2500)
    rig.recorder.stop(rig.now)
    assert rig.saved()[0].path.parent.name == "episode_0"
    assert rig.recorder.status().saved == 1


def test_two_recordings_have_each_their_own_instruction_latched_at_the_start(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start("pick up the red cube", seed=1)
    rig.run(200, 1200)
    rig.recorder.stop(rig.now)
    first, _ = rig.saved()
    rig.start("put it down")
    rig.run(1200, 2200)
    rig.recorder.stop(rig.now)
    second, metadata = rig.saved()
    assert (first.instruction, second.instruction) == ("pick up the red cube", "put it down")
    assert second.path.parent.name == "episode_1"
    assert second.stamp[0] > first.stamp[-1]
    assert metadata.seed is None


def test_requests_out_of_order_are_refused_with_the_reason(make: Make) -> None:
    rig = make(CONFIG)
    for act in (lambda: rig.recorder.stop(0.0), rig.recorder.discard):
        with pytest.raises(RefusedError, match="the recorder is idle"):
            act()
    with pytest.raises(RefusedError, match="no saved episode"):
        rig.recorder.mark_success(True)
    with pytest.raises(RefusedError, match="parameter instruction is empty"):
        rig.start("  ")
    rig.start()
    with pytest.raises(RefusedError, match="the recorder is waiting"):
        rig.start()
    assert rig.recorder.stop(rig.now) == "nothing was recorded"
    assert rig.nothing() == "stopped by the operator"


def test_success_can_be_said_of_the_last_episode(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1200)
    rig.recorder.stop(rig.now)
    assert rig.saved()[1].success is None
    rig.recorder.mark_success(False)
    assert rig.saved()[1].success is False


def test_shutting_down_keeps_an_episode_as_partial_and_says_how_to_recover_it(make: Make) -> None:
    rig = make(CONFIG)
    rig.run(0, 200)
    rig.start()
    rig.run(200, 1200)
    rig.recorder.shut_down(30)
    (partial,) = list_partials(rig.root)
    assert f"recover it with: python -m crane_x7_log.episodes recover {partial}" in rig.log.text
    assert not list(rig.root.rglob("*.tfrecord"))


def test_shutting_down_after_stop_finishes_the_episode(make: Make) -> None:
    for config in (CONFIG, LOCKSTEP):
        rig = make(config)
        rig.start()
        if config.lockstep:
            for k in range(10):
                rig.instant(k * 100 * MS)
        else:
            rig.run(0, 1200)
        rig.recorder.stop(rig.now)
        rig.recorder.shut_down(30)
        assert rig.recorder.status().saved == 1


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong, message in [
        ({"cameras": ()}, "camera_names is empty"),
        ({"cameras": ("state",)}, "cannot be named 'state'"),
        ({"cameras": ("a", "a")}, "has a name twice"),
        ({"hz": 0.0}, "control_hz is 0.0"),
        ({"commanded": "maybe"}, "expected one of auto, required, off"),
        ({"jpeg_quality": 0}, "expected 1 to 100"),
        ({"frozen_camera_s": -1.0}, "frozen_camera_s is -1.0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            replace(CONFIG, **wrong)
