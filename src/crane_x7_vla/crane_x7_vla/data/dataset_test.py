from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crane_x7_vla.data.dataset import (
    EpisodeDataset,
    LoadedEpisode,
    choose_action_source,
    image_sizes,
    load_episodes,
    split_episodes,
)
from crane_x7_vla.data.episode import decode_jpeg, list_episodes, read_episode
from crane_x7_vla.data.sampler import StepSampler
from crane_x7_vla.errors import DataError
from crane_x7_vla.robot import CRANE_X7

Record = Callable[..., Path]
CAMERAS = ("primary", "wrist")


def load(root: Path, **settings: Any) -> list[LoadedEpisode]:
    settings = {"cameras": CAMERAS, "control_hz": 10.0, **settings}
    return load_episodes(list_episodes(root), robot=CRANE_X7, **settings)


def dataset(episodes: list[LoadedEpisode], *, horizon: int = 4, source: str = "commanded") -> EpisodeDataset:
    return EpisodeDataset(episodes, horizon=horizon, action_source=source, image_size=image_sizes(episodes, CAMERAS))


@pytest.mark.parametrize("cache_bytes", [0, 3000, 1e9])
@pytest.mark.parametrize("source", ["commanded", "next_state"])
def test_samples_are_the_recorded_steps_and_the_actions_after_them(
    tmp_path: Path, record_episodes: Record, cache_bytes: float, source: str
) -> None:
    root = record_episodes(tmp_path, 3, n_steps=5)
    samples = list(dataset(load(root, cache_bytes=cache_bytes), source=source))
    assert len(samples) == 15
    number = 0
    for path in list_episodes(root):
        episode = read_episode(path)
        assert episode.commanded is not None
        target = episode.commanded if source == "commanded" else episode.action
        for step in range(5):
            sample = samples[number]
            number += 1
            seen = sample.observation
            assert np.array_equal(seen.state, episode.state[step])
            assert seen.instruction == "pick up the red cube"
            assert seen.stamp == episode.stamp[step]
            for camera in CAMERAS:
                assert np.array_equal(seen.images[camera], decode_jpeg(episode.images[camera][step]))
            for row in range(4):
                assert np.array_equal(sample.actions[row], target[min(step + row, 4)])
                assert sample.is_pad[row] == (step + row > 4)
            if step == 0:
                assert seen.commanded is None
            else:
                assert seen.commanded is not None
                assert np.array_equal(seen.commanded, episode.commanded[step - 1])


def test_observations_hold_the_steps_before_them_newest_first(tmp_path: Path, record_episodes: Record) -> None:
    episodes = load(record_episodes(tmp_path, 2, n_steps=4))
    sizes = image_sizes(episodes, CAMERAS)
    seen = [
        sample.observation
        for sample in EpisodeDataset(episodes, horizon=2, action_source="commanded", image_size=sizes, history=2)
    ]
    assert [len(observation.past) for observation in seen] == [0, 1, 2, 2] * 2
    for back, past in enumerate(seen[7].past, start=1):
        assert past.past == ()
        assert past.stamp == seen[7 - back].stamp
        assert np.array_equal(past.state, seen[7 - back].state)
        assert np.array_equal(past.images["wrist"], seen[7 - back].images["wrist"])


def test_a_data_set_may_go_to_worker_processes(tmp_path: Path, record_episodes: Record) -> None:
    original = dataset(load(record_episodes(tmp_path, 2)))
    copy = pickle.loads(pickle.dumps(original))
    assert np.array_equal(copy[7].observation.images["wrist"], original[7].observation.images["wrist"])
    with pytest.raises(IndexError, match="step 12 of 12"):
        original[12]


def test_the_starts_of_episodes(tmp_path: Path, record_episodes: Record) -> None:
    starts = dataset(load(record_episodes(tmp_path, 2, n_steps=5))).starts(2)
    assert starts.tolist() == [True, True, False, False, False] * 2


def test_auto_prefers_commanded_targets_if_every_episode_has_them(
    tmp_path: Path, record_episodes: Record, caplog: pytest.LogCaptureFixture
) -> None:
    commanded = load(record_episodes(tmp_path, 2))
    assert choose_action_source(commanded, "auto") == "commanded"
    assert choose_action_source(commanded, "next_state") == "next_state"
    mixed = load(record_episodes(tmp_path, 1, commanded=False))
    assert choose_action_source(mixed, "auto") == "next_state"
    assert "1 of 3 episodes have no action/commanded" in caplog.text
    with pytest.raises(DataError, match=r"1 of 3 episodes have no action/commanded, such as .*--action-source next_st"):
        choose_action_source(mixed, "commanded")


def test_another_instruction_may_be_given(tmp_path: Path, record_episodes: Record) -> None:
    episodes = load(record_episodes(tmp_path, 1), instruction="stack")
    assert dataset(episodes)[0].observation.instruction == "stack"


def test_data_that_do_not_belong_together_are_refused_in_one_line(tmp_path: Path, record_episodes: Record) -> None:
    for name, settings, message in [
        ("robot", {"robot": "leader"}, "is of robot 'leader', expected 'crane_x7'"),
        ("hz", {"hz": 30.0}, "was recorded at 30 Hz, data.control_hz is 10"),
        (
            "camera",
            {"cameras": ("primary",)},
            "has no camera 'wrist'; it has: primary. Use episodes with all",
        ),
    ]:
        root = record_episodes(tmp_path / name, 1)
        record_episodes(root, 1, **settings)
        with pytest.raises(DataError, match=message) as error:
            load(root)
        assert "episode_1" in str(error.value)
        assert "\n" not in str(error.value)
    root = record_episodes(tmp_path / "size", 1)
    record_episodes(root, 1, size=(16, 12))
    with pytest.raises(DataError, match=r"camera 'primary' is 16x12 in .* and 32x24 in"):
        image_sizes(load(root), CAMERAS)


def test_an_image_of_another_size_in_the_middle_of_an_episode_is_refused(
    tmp_path: Path, record_episodes: Record
) -> None:
    episodes = load(record_episodes(tmp_path, 1))
    wrong = EpisodeDataset(episodes, horizon=2, action_source="commanded", image_size={"primary": (32, 32)})
    with pytest.raises(DataError, match="record 0: image of camera 'primary' is 32x24, expected 32x32"):
        wrong[0]


@pytest.mark.parametrize("n", [2, 3, 10, 37, 100])
@pytest.mark.parametrize("val_split", [0.0, 0.1, 0.5])
def test_no_episode_is_both_trained_on_and_held_out(n: int, val_split: float) -> None:
    paths = [Path(f"episode_{i}") for i in range(n)]
    train, val = split_episodes(paths, val_split=val_split, seed=3)
    assert not set(train) & set(val)
    assert set(train) | set(val) == set(paths)
    assert len(val) == (0 if val_split == 0 else max(1, round(val_split * n)))
    assert split_episodes(paths, val_split=val_split, seed=3) == (train, val)


def test_the_split_depends_on_the_seed_and_may_leave_episodes_out() -> None:
    paths = [Path(f"episode_{i}") for i in range(50)]
    assert split_episodes(paths, val_split=0.2, seed=0) != split_episodes(paths, val_split=0.2, seed=1)
    train, val = split_episodes(paths, val_split=0.2, seed=0, train_split=0.1)
    assert (len(train), len(val)) == (5, 10)
    with pytest.raises(DataError, match=r"1 episode.s. cannot be split into training and held-out ones.*--val-split 0"):
        split_episodes(paths[:1], val_split=0.1, seed=0)
    assert split_episodes(paths[:1], val_split=0, seed=0) == (paths[:1], [])


def indices(sampler: StepSampler, batches: int) -> list[int]:
    return [index for number in range(batches) for index, _ in sampler.batch(number)]


def test_each_pass_draws_every_step_once_in_another_order() -> None:
    drawn = indices(StepSampler(12, batch_size=4, seed=0), 9)
    rounds = [drawn[i : i + 12] for i in (0, 12, 24)]
    assert all(sorted(one) == list(range(12)) for one in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert indices(StepSampler(12, batch_size=4, seed=1), 9) != drawn
    assert indices(StepSampler(6, batch_size=4, seed=0, shuffle=False), 3) == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]


def test_drawing_goes_on_where_it_stopped() -> None:
    whole = StepSampler(10, batch_size=3, seed=5)
    resumed = iter(StepSampler(10, batch_size=3, seed=5, first_batch=4))
    assert [next(resumed) for _ in range(3)] == [whole.batch(4), whole.batch(5), whole.batch(6)]


@pytest.mark.parametrize("start_fraction", [0.0, 0.5])
def test_processes_draw_together_what_one_would(start_fraction: float) -> None:
    settings: Any = {"seed": 2, "starts": np.arange(20) % 5 == 0, "start_fraction": start_fraction}
    alone = StepSampler(20, batch_size=8, **settings)
    parts = [StepSampler(20, batch_size=4, rank=rank, world=2, **settings) for rank in (0, 1)]
    for number in range(7):
        together = [draw for pair in zip(parts[0].batch(number), parts[1].batch(number), strict=True) for draw in pair]
        assert together == alone.batch(number)


def test_a_share_of_every_batch_comes_from_the_starts() -> None:
    starts = np.arange(50) % 10 < 2
    sampler = StepSampler(50, batch_size=10, seed=0, starts=starts, start_fraction=0.3)
    for number in range(20):
        chosen = [index for index, _ in sampler.batch(number)]
        assert all(starts[index] for index in chosen[:3])
    drawn = [index for number in range(10) for index, _ in sampler.batch(number)[:3]]
    assert all(drawn.count(index) == 3 for index in np.flatnonzero(starts).tolist())


def test_no_draw_has_the_number_of_another() -> None:
    sampler = StepSampler(7, batch_size=4, seed=0)
    numbers = [number for batch in range(5) for _, number in sampler.batch(batch)]
    assert numbers == list(range(20))


@pytest.mark.parametrize(("recorded", "wanted"), [(30.0, 10.0), (10.0, 20.0)])
def test_without_metadata_the_stamps_say_the_rate(
    tmp_path: Path, record_episodes: Record, recorded: float, wanted: float
) -> None:
    root = record_episodes(tmp_path, 1, hz=recorded)
    (root / "episode_0" / "episode_metadata.json").unlink()
    assert len(load(root, control_hz=recorded)) == 1
    with pytest.raises(DataError) as error:
        load(root, control_hz=wanted)
    assert f"a step every {1 / recorded:g} s by its stamps, data.control_hz is {wanted:g}" in str(error.value)
