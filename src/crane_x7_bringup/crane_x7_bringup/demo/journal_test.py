from __future__ import annotations

from pathlib import Path

from crane_x7_bringup.demo.journal import append_entry, begin_journal, read_journal


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.jsonl"
    assert read_journal(path) == []
    for seed in range(3):
        append_entry(path, {"seed": seed, "success": seed != 1})
    assert [entry["seed"] for entry in read_journal(path)] == [0, 1, 2]


def test_a_line_cut_off_by_a_kill_is_neither_read_nor_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_entry(path, {"seed": 0})
    with path.open("a") as file:
        file.write('{"seed": 1, "succ')
    assert [entry["seed"] for entry in read_journal(path)] == [0]
    append_entry(path, {"seed": 2})
    assert [entry["seed"] for entry in read_journal(path)] == [0, 2]


def test_a_journal_of_another_subject_is_started_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_entry(path, {"seed": 0})
    begin_journal(path, {"model": "one"})
    assert read_journal(path) == []
    append_entry(path, {"seed": 1})
    begin_journal(path, {"model": "one"})
    assert [entry["seed"] for entry in read_journal(path)] == [1]
    begin_journal(path, {"model": "two"})
    assert read_journal(path) == []
