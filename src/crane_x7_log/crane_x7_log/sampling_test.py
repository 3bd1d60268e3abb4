from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
import pytest

from crane_x7_log.lockstep import LockstepSampler
from crane_x7_log.sampling import ARM_COMMAND, COMMANDS, GRIPPER_COMMAND, STATE, GridSampler, Sampler, Transition

MS = 1_000_000
PERIOD = 100 * MS
CAMERAS = ("primary", "wrist")
LABELS = {source: f"<{source}>" for source in (STATE, *CAMERAS, *COMMANDS)}


def grid(cameras: Sequence[str] = CAMERAS) -> GridSampler:
    return GridSampler(
        cameras,
        labels=LABELS,
        period_ns=PERIOD,
        tolerance_ns=50 * MS,
        max_age_ns={STATE: 200 * MS, "primary": 500 * MS, "wrist": 500 * MS},
    )


def state_at(stamp_ns: int) -> np.ndarray:
    return np.full(8, stamp_ns / 1e9, np.float32)


def feed(sampler: Sampler, events: Sequence[tuple[str, int]]) -> list[Transition]:
    """Messages whose content says their stamp, polled after each."""
    done: list[Transition] = []
    for source, stamp_ns in events:
        if source == STATE:
            sampler.add_state(stamp_ns, state_at(stamp_ns))
        elif source in COMMANDS:
            sampler.add_command(source, stamp_ns)
        else:
            sampler.add_image(source, stamp_ns, str(stamp_ns).encode())
        done += sampler.poll()
    return done


def stream(source: str, every_ms: float, until_ms: int, *, start_ms: float = 0, delay_ms: float = 0) -> list:
    """(arrival, source, stamp) of a source."""
    stamps = np.arange(start_ms, until_ms, every_ms)
    return [(stamp + delay_ms, source, round(stamp * MS)) for stamp in stamps]


def merged(*streams: list) -> list[tuple[str, int]]:
    return [(source, stamp) for _, source, stamp in sorted(chain(*streams), key=lambda event: event[0])]


def usual(until_ms: int = 2000) -> list[tuple[str, int]]:
    return merged(
        stream(STATE, 10, until_ms),
        stream("primary", 33.333, until_ms, start_ms=7, delay_ms=45),
        stream("wrist", 33.333, until_ms, start_ms=21, delay_ms=30),
    )


def test_every_source_is_paired_with_the_grid_by_its_nearest_stamp() -> None:
    sampler = grid()
    done = feed(sampler, usual())
    start = done[0].sample.stamp_ns
    assert start == 21 * MS, "the first instant that every source has reached"
    for k, transition in enumerate(done):
        sample = transition.sample
        assert sample.stamp_ns == start + k * PERIOD
        assert abs(sample.state.stamp_ns - sample.stamp_ns) <= 5 * MS
        for camera, image in sample.images.items():
            assert abs(image.stamp_ns - sample.stamp_ns) <= 17 * MS, camera
            assert image.value == str(image.stamp_ns).encode()
        assert transition.next_stamp_ns == sample.stamp_ns + PERIOD
    assert len(done) == 18
    for earlier, later in pairwise(done):
        np.testing.assert_array_equal(earlier.next_state, later.sample.state.value)
    assert set(sampler.missed.values()) == {0}


def test_the_result_does_not_depend_on_how_late_images_arrive() -> None:
    def run(delay_ms: float) -> list[tuple[int, dict[str, int]]]:
        sampler = grid()
        done = feed(
            sampler,
            merged(
                stream(STATE, 10, 2500),
                stream("primary", 33.333, 2500, start_ms=7, delay_ms=delay_ms),
                stream("wrist", 33.333, 2500, start_ms=21, delay_ms=0),
            ),
        )
        assert sampler.fault is None
        return [(t.sample.stamp_ns, {c: i.stamp_ns for c, i in t.sample.images.items()}) for t in done[:15]]

    assert run(0) == run(120) == run(350)


def test_jitter_of_stamps_is_followed() -> None:
    rng = np.random.default_rng(0)
    events = sorted(
        (arrival + rng.uniform(0, 20), source, stamp + round(rng.uniform(-8, 8) * MS))
        for arrival, source, stamp in [*stream(STATE, 20, 3000, start_ms=10), *stream("primary", 33, 3000, start_ms=10)]
    )
    sampler = grid(("primary",))
    done = feed(sampler, [(source, stamp) for _, source, stamp in events])
    assert sampler.fault is None
    assert len(done) >= 25
    assert max(abs(t.sample.state.stamp_ns - t.sample.stamp_ns) for t in done) <= 25 * MS


def test_an_instant_further_away_than_the_tolerance_is_used_and_counted() -> None:
    events = [e for e in usual() if not (e[0] == "wrist" and 850 * MS < e[1] < 1100 * MS)]
    sampler = grid()
    done = feed(sampler, events)
    assert sampler.fault is None
    assert sampler.missed == {STATE: 0, "primary": 0, "wrist": 2}
    assert [t.sample.stamp_ns for t in done] == [21 * MS + k * PERIOD for k in range(len(done))]
    assert len(done) == 18


@pytest.mark.parametrize(("source", "limit_ms"), [("wrist", 500), (STATE, 200)])
def test_a_source_that_stops_is_a_fault_and_what_came_before_is_kept(source: str, limit_ms: int) -> None:
    sampler = grid()
    done = feed(sampler, [e for e in usual(4000) if e[0] != source or e[1] < 1000 * MS])
    assert sampler.fault is not None
    assert f"<{source}> is stale" in sampler.fault
    assert f"at most {limit_ms / 1000:g} s are allowed" in sampler.fault
    done += sampler.flush()
    assert 7 <= len(done) <= 10
    assert done[-1].sample.stamp_ns < 1000 * MS
    assert feed(sampler, [("wrist", 5000 * MS)]) == [], "nothing comes after a fault"


def test_a_frozen_stamp_is_as_good_as_no_message() -> None:
    sampler = grid()
    frozen = [(s, min(stamp, 1000 * MS) if s == "wrist" else stamp) for s, stamp in usual(4000)]
    feed(sampler, frozen)
    assert sampler.fault is not None
    assert "<wrist> is stale" in sampler.fault


def test_a_gap_of_all_sources_is_a_fault() -> None:
    sampler = grid()
    feed(sampler, usual(1000) + [(s, stamp + 2000 * MS) for s, stamp in usual(1000)])
    assert sampler.fault is not None
    assert sampler.fault == (
        "<joint_states> went from 0.990 s to 2.000 s: the simulator was reset, or messages were lost"
    )


def test_a_clock_that_goes_backwards_is_a_fault_but_a_late_message_is_not() -> None:
    sampler = grid(("primary",))
    feed(sampler, [(STATE, 1000 * MS), ("primary", 1000 * MS)])
    assert not sampler.add_state(990 * MS, state_at(990 * MS))
    assert not sampler.add_state(1000 * MS, state_at(1000 * MS))
    assert sampler.fault is None
    sampler.add_state(100 * MS, state_at(100 * MS))
    assert sampler.fault is not None
    assert "the clock of <joint_states> went backwards from 1.000 s to 0.100 s" in sampler.fault


def test_sources_with_different_clocks_never_start_and_the_hint_says_so() -> None:
    sampler = grid(("primary",))
    events = merged(stream(STATE, 10, 1000), stream("primary", 33, 1000, start_ms=0))
    done = feed(sampler, [(s, stamp + (3_600_000 * MS if s == "primary" else 0)) for s, stamp in events])
    assert done == []
    assert sampler.fault is None
    assert "stamps of <joint_states> are 3600.0 s older" in sampler.hint()
    assert sampler.waiting_for() == [STATE]


def test_a_source_that_comes_late_starts_the_episode_and_memory_stays_bounded() -> None:
    sampler = grid(("primary",))
    feed(sampler, merged(stream(STATE, 1, 5000)))
    assert sampler.waiting_for() == ["primary"]
    assert len(sampler._states) <= 501  # pyright: ignore[reportPrivateUsage]
    done = feed(
        sampler, merged(stream(STATE, 10, 6000, start_ms=5000), stream("primary", 30, 6000, start_ms=5000, delay_ms=1))
    )
    assert done[0].sample.stamp_ns == 5000 * MS


# --- lockstep ---


def lockstep() -> LockstepSampler:
    return LockstepSampler(CAMERAS, labels=LABELS, period_ns=PERIOD)


def instant(stamp_ms: float, *, commands: bool = True) -> list[tuple[str, int]]:
    sources = [STATE, *CAMERAS] + (list(COMMANDS) if commands else [])
    return [(source, round(stamp_ms * MS)) for source in sources]


def episode(start_ms: float, n: int) -> list[tuple[str, int]]:
    """n instants with commands and the last without."""
    return [e for k in range(n) for e in instant(start_ms + 100 * k)] + instant(start_ms + 100 * n, commands=False)


def stamps_ms(done: list[Transition]) -> list[int]:
    return [t.sample.stamp_ns // MS for t in done]


def test_lockstep_takes_every_complete_instant_and_the_last_state_has_no_step() -> None:
    sampler = lockstep()
    done = feed(sampler, episode(1000, 5))
    assert stamps_ms(done) == [1000, 1100, 1200, 1300, 1400]
    assert done[-1].next_stamp_ns == 1500 * MS
    np.testing.assert_array_equal(done[-1].next_state, state_at(1500 * MS))
    assert sampler.flush() == []
    assert sampler.fault is None


def test_lockstep_does_not_depend_on_the_order_in_which_topics_are_read() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        events = episode(1000, 12)
        order = np.argsort(np.arange(len(events)) + rng.uniform(0, 12, len(events)))
        sampler = lockstep()
        # each topic keeps its own order, as DDS does
        shuffled = [events[i] for i in order]
        queues = {s: iter(sorted(stamp for x, stamp in events if x == s)) for s, _ in events}
        done = feed(sampler, [(s, next(queues[s])) for s, _ in shuffled]) + sampler.flush()
        assert stamps_ms(done) == list(range(1000, 2200, 100))
        assert sampler.fault is None


def test_lockstep_leaves_out_what_was_before_the_reset() -> None:
    for old in (instant(500, commands=False), instant(500)):
        sampler = lockstep()
        assert stamps_ms(feed(sampler, old + episode(1600, 3))) == [1600, 1700, 1800]
        assert sampler.fault is None
        assert set(sampler.missed.values()) == {0}


def test_lockstep_counts_what_the_first_instants_lacked() -> None:
    sampler = lockstep()
    events = [e for e in episode(1000, 12) if e not in {(ARM_COMMAND, 1000 * MS), ("wrist", 1100 * MS)}]
    assert stamps_ms(feed(sampler, events) + sampler.flush()) == list(range(1200, 2200, 100))
    assert sampler.missed == {STATE: 0, "primary": 0, "wrist": 1, ARM_COMMAND: 1, GRIPPER_COMMAND: 0}


def test_lockstep_ends_where_something_never_came() -> None:
    events = [e for e in episode(1000, 40) if e != ("wrist", 1500 * MS)]
    sampler = lockstep()
    assert stamps_ms(feed(sampler, events)) == [1000, 1100, 1200, 1300, 1400]
    assert sampler.fault == "<wrist> of the instant 1.500 s never came"
    assert sampler.missed["wrist"] == 1
    short = lockstep()
    feed(short, [e for e in episode(1000, 8) if e != ("wrist", 1500 * MS)])
    assert short.fault is None, "it may still come"
    short.flush()
    assert short.fault == "<wrist> of the instant 1.500 s never came"


def test_lockstep_takes_a_reset_or_another_rate_for_a_fault() -> None:
    sampler = lockstep()
    done = feed(sampler, episode(1000, 3) + episode(2300, 3))
    assert stamps_ms(done) == [1000, 1100, 1200]
    assert sampler.fault == (
        "time went from 1.300 s to 2.300 s in one step of 0.1 s: the simulator was reset, or runs at another rate"
    )


def test_lockstep_notices_a_clock_that_goes_backwards() -> None:
    sampler = lockstep()
    feed(sampler, [*episode(10_000, 3), (STATE, 100 * MS)])
    assert sampler.fault is not None
    assert "went backwards" in sampler.fault


def test_lockstep_takes_a_repeated_instant_once() -> None:
    sampler = lockstep()
    first = instant(1000, commands=False)
    done = feed(sampler, first * 3 + instant(1000) + instant(1100) + first + instant(1200))
    assert stamps_ms(done) == [1000, 1100]
    assert sampler.add_state(1100 * MS, state_at(0)), "the present instant is harmless"
    assert not sampler.add_state(1000 * MS, state_at(0))


def test_lockstep_says_what_it_waits_for() -> None:
    sampler = lockstep()
    assert sampler.waiting_for() == [STATE, *CAMERAS, *COMMANDS]
    feed(sampler, [(STATE, 1000 * MS), ("wrist", 1000 * MS), (ARM_COMMAND, 1000 * MS)])
    assert sampler.waiting_for() == ["primary", GRIPPER_COMMAND]
    feed(sampler, instant(1000))
    assert sampler.waiting_for() == [STATE], "the next instant"
