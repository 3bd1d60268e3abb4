# pyright: strict, reportMissingTypeStubs=false
"""Statistics of a data set that states and actions are normalised with, and the fingerprint of what they describe.

The file ``dataset_statistics.json`` has the shape of OpenVLA's: one entry per data set with ``action`` and ``proprio``.
Action statistics are in the units the model is trained on (``transforms.action.action_rows``), states in rad.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from crane_x7_vla.errors import DataError

FILE_NAME = "dataset_statistics.json"
DATASET_NAME = "crane_x7"
_VECTORS = ("mean", "std", "min", "max", "q01", "q99")
# Enough of a file's two ends to tell recordings apart without reading gigabytes of images.
_FINGERPRINT_BYTES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class NormStats:
    """mean, std (population), min, max, q01, q99: float32 [D]; mask: bool [D], the entries that are normalised."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    mask: np.ndarray

    def __post_init__(self) -> None:
        vectors = {name: cast(np.ndarray, getattr(self, name)) for name in _VECTORS}
        for name, vector in vectors.items():
            if vector.dtype != np.float32 or vector.shape != self.mean.shape or vector.ndim != 1:
                raise DataError(
                    f"statistic '{name}' must be float32 [{self.mean.size}] like 'mean', "
                    f"got {vector.dtype} {list(vector.shape)}"
                )
            if not np.isfinite(vector).all():
                raise DataError(f"statistic '{name}' holds NaN or infinity; compute the statistics again")
        if self.mask.dtype != np.bool_ or self.mask.shape != self.mean.shape:
            raise DataError(
                f"statistic 'mask' must be bool [{self.mean.size}], got {self.mask.dtype} {list(self.mask.shape)}"
            )

    @property
    def size(self) -> int:
        """Number of entries D."""
        return int(self.mean.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStatistics:
    """What the training episodes look like. fingerprint: of those episodes, see ``fingerprint_episodes``."""

    action: NormStats
    state: NormStats
    num_transitions: int
    num_trajectories: int
    fingerprint: str


def norm_stats(rows: np.ndarray) -> NormStats:
    """Statistics of each column of ``rows`` [N, D]. Raises DataError where N is 0 or a value is not finite."""
    if rows.ndim != 2 or len(rows) == 0:
        raise DataError(f"statistics need at least one row [N, D], got shape {list(rows.shape)}")
    columns: list[tuple[float, ...]] = []
    for index in range(rows.shape[1]):  # column by column: chunks of a large data set are too big for float64 copies
        column = rows[:, index].astype(np.float64)
        if not np.isfinite(column).all():
            raise DataError(f"entry {index} of the data holds NaN or infinity; remove the damaged episode")
        q01, q99 = np.quantile(column, (0.01, 0.99))
        columns.append((column.mean(), column.std(), column.min(), column.max(), float(q01), float(q99)))
    values = np.array(columns, dtype=np.float64).T.astype(np.float32)
    return NormStats(
        mean=values[0],
        std=values[1],
        min=values[2],
        max=values[3],
        q01=values[4],
        q99=values[5],
        mask=np.ones_like(values[0], dtype=np.bool_),
    )


def compute_statistics(
    states: np.ndarray, actions: np.ndarray, *, num_trajectories: int, fingerprint: str
) -> DatasetStatistics:
    """states: [N, S] rad, one row per step. actions: [M, A] in the model's units, all rows of all chunks."""
    return DatasetStatistics(
        action=norm_stats(actions),
        state=norm_stats(states),
        num_transitions=len(states),
        num_trajectories=num_trajectories,
        fingerprint=fingerprint,
    )


def fingerprint_episodes(paths: Sequence[Path], root: Path) -> str:
    """Hex digest that changes when episodes are added, removed or replaced, and survives copying the whole data set.

    Made of each file's path under ``root``, its size, and its first and last 64 KiB; the order of ``paths`` is free.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_FINGERPRINT_BYTES))
            file.seek(max(0, size - _FINGERPRINT_BYTES))
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()


def to_json(statistics: DatasetStatistics, dataset_name: str = DATASET_NAME) -> str:
    """The text of dataset_statistics.json. float32 values survive the round trip exactly."""
    entry = {
        "action": _stats_to_dict(statistics.action),
        "proprio": _stats_to_dict(statistics.state),
        "num_transitions": statistics.num_transitions,
        "num_trajectories": statistics.num_trajectories,
        "fingerprint": statistics.fingerprint,
    }
    return json.dumps({dataset_name: entry}, indent=2) + "\n"


def from_json(text: str, *, source: str = FILE_NAME, dataset_name: str | None = None) -> DatasetStatistics:
    """Inverse of ``to_json``. source: the file, for messages. dataset_name: which entry, where there are several.

    A missing mask means that every entry is normalised; a missing fingerprint (files of other projects) becomes ''.
    Raises DataError that names the file and the key.
    """
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{source} is not JSON ({error}); compute it again") from error
    if not isinstance(table, dict) or not table:
        raise DataError(f"{source} holds no data set; expected {{name: {{action, proprio}}}}")
    entries = cast(dict[str, Any], table)
    if dataset_name is None and len(entries) == 1:
        dataset_name = next(iter(entries))
    if dataset_name is None or dataset_name not in entries:
        raise DataError(f"{source} holds {', '.join(entries)}; expected one data set or the name of one of these")
    raw = entries[dataset_name]
    entry = cast(dict[str, Any], raw if isinstance(raw, dict) else {})
    for key in ("action", "proprio"):
        if key not in entry:
            raise DataError(f"{source}: '{dataset_name}' lacks '{key}'; compute it again")
    return DatasetStatistics(
        action=_stats_from_dict(entry["action"], f"{source}: '{dataset_name}.action'"),
        state=_stats_from_dict(entry["proprio"], f"{source}: '{dataset_name}.proprio'"),
        num_transitions=_count(entry, "num_transitions", f"{source}: '{dataset_name}'"),
        num_trajectories=_count(entry, "num_trajectories", f"{source}: '{dataset_name}'"),
        fingerprint=str(entry.get("fingerprint", "")),
    )


def load_statistics(path: Path) -> DatasetStatistics:
    """Read dataset_statistics.json. Raises DataError where it is missing or damaged."""
    if not path.is_file():
        raise DataError(
            f"no {path}; write it with: python -m crane_x7_vla.scripts.compute_crane_x7_norm_stats BACKEND "
            f"--data-root DIR --output {path}"
        )
    return from_json(path.read_text(encoding="utf-8"), source=str(path))


def _stats_to_dict(stats: NormStats) -> dict[str, list[float] | list[bool]]:
    result: dict[str, list[float] | list[bool]] = {
        name: [float(value) for value in cast(np.ndarray, getattr(stats, name))] for name in _VECTORS
    }
    result["mask"] = [bool(value) for value in stats.mask]
    return result


def _stats_from_dict(value: object, where: str) -> NormStats:
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a table of {', '.join(_VECTORS)}")
    table = cast(dict[str, Any], value)
    missing = [name for name in _VECTORS if name not in table]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; compute it again")
    vectors = {name: _vector(table[name], f"{where}: '{name}'") for name in _VECTORS}
    mask = table.get("mask", [True] * vectors["mean"].size)
    if not isinstance(mask, list) or not all(isinstance(value, bool) for value in cast(list[object], mask)):
        raise DataError(f"{where}: 'mask' must be a list of true and false; compute it again")
    try:
        return NormStats(**vectors, mask=np.array(mask, dtype=np.bool_))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _vector(value: object, where: str) -> np.ndarray:
    if isinstance(value, list):
        numbers = cast(list[object], value)
        if all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
            return np.array(numbers, dtype=np.float32)
    raise DataError(f"{where} must be a list of numbers; compute it again")


def _count(entry: dict[str, Any], key: str, where: str) -> int:
    value: object = entry.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DataError(f"{where}: '{key}' must be a whole number, got {value!r}; compute it again")
    return value
