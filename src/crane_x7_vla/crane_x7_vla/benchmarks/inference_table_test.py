"""The table of the benchmark's JSON files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from crane_x7_vla.benchmarks.inference import Report
from crane_x7_vla.benchmarks.inference_table import main

REPORT = Report(
    backend="minivla",
    architecture="minivla",
    device="NVIDIA X",
    dtype="bfloat16",
    torch="2",
    threads=1,
    graph=True,
    batch=1,
    images=2,
    prompt_tokens=60,
    actions=8,
    joints=8,
    parameters=1,
    calls=50,
    median_ms=1.26,
    p95_ms=2.04,
    peak_memory_bytes=3 << 30,
    weight_bytes=1,
    flops=1,
    bandwidth_bytes_per_s=1.0,
    compute_flop_per_s=1.0,
    bandwidth_ms=0.5,
    compute_ms=0.5,
    floor_ms=0.74,
)


def test_a_row_for_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, changes in zip(files, ({}, {"graph": False, "batch": 4}), strict=True):
        path.write_text(json.dumps(asdict(REPORT) | changes))
    assert main([str(path) for path in files]) == 0
    head, rule, first, second = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert first == "| minivla (minivla) | NVIDIA X, bfloat16 | 2 | 60 | 8 x 8 | 1.3 | 2.0 | 0.7 | 3.0 |"
    assert "NVIDIA X, bfloat16, eager, batch 4" in second


@pytest.mark.parametrize("text", [None, "no JSON", "[]", '{"backend": "minivla"}'])
def test_another_file_is_one_line(text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} ")
    assert "crane_x7_vla.benchmarks.inference" in error
    assert error.count("\n") == 1
