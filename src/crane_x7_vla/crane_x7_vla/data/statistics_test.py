from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crane_x7_vla.data.statistics import (
    NormStats,
    compute_statistics,
    fingerprint_episodes,
    from_json,
    load_statistics,
    norm_stats,
    to_json,
)
from crane_x7_vla.errors import DataError

RNG = np.random.default_rng(0)


def test_statistics_equal_numpys() -> None:
    rows = RNG.normal(size=(500, 8)).astype(np.float32) * 3
    stats = norm_stats(rows)
    for name, expected in {
        "mean": rows.astype(np.float64).mean(axis=0),
        "std": rows.astype(np.float64).std(axis=0),
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "q01": np.quantile(rows.astype(np.float64), 0.01, axis=0),
        "q99": np.quantile(rows.astype(np.float64), 0.99, axis=0),
    }.items():
        value = getattr(stats, name)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7)
    assert stats.mask.all()


def test_json_round_trip_is_exact_and_has_the_published_shape() -> None:
    before = compute_statistics(
        RNG.normal(size=(20, 8)), RNG.normal(size=(60, 8)), num_trajectories=3, fingerprint="abc"
    )
    text = to_json(before)
    entry = json.loads(text)["crane_x7"]
    assert set(entry) == {"action", "proprio", "num_transitions", "num_trajectories", "fingerprint"}
    assert set(entry["action"]) == {"mean", "std", "min", "max", "q01", "q99", "mask"}
    after = from_json(text)
    assert (after.num_transitions, after.num_trajectories, after.fingerprint) == (20, 3, "abc")
    for name in ("mean", "std", "min", "max", "q01", "q99", "mask"):
        assert np.array_equal(getattr(after.action, name), getattr(before.action, name))
        assert np.array_equal(getattr(after.state, name), getattr(before.state, name))


@pytest.mark.parametrize(
    ("rows", "message"),
    [(np.zeros((0, 8)), "at least one row"), (np.full((3, 8), np.nan), "entry 0 of the data holds NaN")],
)
def test_data_without_statistics_are_refused(rows: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        norm_stats(rows)


def test_vectors_of_different_sizes_are_refused() -> None:
    good, bad = np.zeros(8, np.float32), np.zeros(7, np.float32)
    with pytest.raises(DataError, match=r"statistic 'q99' must be float32 \[8\]"):
        NormStats(mean=good, std=good, min=good, max=good, q01=good, q99=bad, mask=np.ones(8, bool))


ENTRY = {key: [0.0, 1.0] for key in ("mean", "std", "min", "max", "q01", "q99")}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "holds no data set"),
        ({"a": {"action": ENTRY}}, "'a' lacks 'proprio'"),
        ({"a": {"action": {"mean": [1]}, "proprio": ENTRY}}, "'a.action' lacks std, min"),
        ({"a": {"action": 3, "proprio": ENTRY}}, "is not a table"),
        ({"a": {}, "b": {}}, "holds a, b; expected one data set"),
        (
            {"a": {"action": ENTRY | {"mean": ["x", 0.0]}, "proprio": ENTRY}},
            "'a.action': 'mean' must be a list of numb",
        ),
        (
            {"a": {"action": ENTRY, "proprio": ENTRY | {"q99": [None, 0.0]}}},
            "'a.proprio': 'q99' must be a list of numb",
        ),
        ({"a": {"action": ENTRY | {"std": 1.0}, "proprio": ENTRY}}, "'a.action': 'std' must be a list of numbers"),
        ({"a": {"action": ENTRY | {"std": [[1.0, 2.0]]}, "proprio": ENTRY}}, "'a.action': 'std' must be a list of num"),
        ({"a": {"action": ENTRY | {"max": [1.0]}, "proprio": ENTRY}}, "'a.action': statistic 'max' must be float32"),
        ({"a": {"action": ENTRY | {"mask": [1, 0]}, "proprio": ENTRY}}, "'a.action': 'mask' must be a list of true"),
        (
            {"a": {"action": ENTRY, "proprio": ENTRY, "num_transitions": "many"}},
            "'a': 'num_transitions' must be a whole number, got 'many'",
        ),
    ],
)
def test_damaged_files_name_the_key(value: object, message: str) -> None:
    with pytest.raises(DataError) as error:
        from_json(json.dumps(value), source="x.json")
    assert message in str(error.value)
    assert "x.json" in str(error.value)


def test_files_of_other_projects_are_read_by_name() -> None:
    text = json.dumps({"bridge": {"action": ENTRY, "proprio": ENTRY}, "other": {}})
    stats = from_json(text, dataset_name="bridge")
    assert stats.action.mask.tolist() == [True, True]
    assert stats.fingerprint == ""


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="compute_crane_x7_norm_stats"):
        load_statistics(tmp_path / "dataset_statistics.json")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.json is not JSON"):
        load_statistics(tmp_path / "broken.json")


def test_the_fingerprint_follows_the_content_and_not_the_place(
    tmp_path: Path, record_episodes: Callable[..., Path]
) -> None:
    root = record_episodes(tmp_path / "a", 3, n_steps=2)
    paths = sorted(root.rglob("*.tfrecord"))
    before = fingerprint_episodes(paths, root)
    copy = tmp_path / "b"
    shutil.copytree(root, copy)
    assert fingerprint_episodes(sorted(copy.rglob("*.tfrecord"), reverse=True), copy) == before
    assert fingerprint_episodes(paths[:2], root) != before
    data = bytearray(paths[0].read_bytes())
    data[-1] ^= 1
    paths[0].write_bytes(bytes(data))
    assert fingerprint_episodes(paths, root) != before
