"""The settings of one backend that docs/training.md lists have the names, flags and defaults of the code."""

from __future__ import annotations

import re

import pytest

from crane_x7_vla.backends import BACKENDS, config_class
from crane_x7_vla.config.schema import settings, value_at
from crane_x7_vla.training.arguments import TrainCommand, parse_command
from tests.documents import ROOT

ROW = re.compile(
    r"^\| `([\w.]+)` \| `(--[\w-]+)` \| `([^`]+)`(?:, (\w+) `([^`]+)`)? \| ([\w, -]+) \|$", flags=re.MULTILINE
)
ROWS = [match.groups() for match in ROW.finditer((ROOT / "docs" / "training.md").read_text(encoding="utf-8"))]


def test_there_are_settings() -> None:
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_documented_setting_has_its_flag_and_default(row: tuple[str, ...]) -> None:
    setting, flag, default, other, others_default, backends = row
    having = [name for name in BACKENDS if f"{config_class(name).block}.{setting}" in settings(config_class(name))]
    assert sorted(having) == sorted(BACKENDS if backends == "all" else backends.split(", "))
    for backend in having:
        path = f"{config_class(backend).block}.{setting}"
        expected = settings(config_class(backend))[path].default
        assert str(expected) == (others_default if backend == other else default)
        command = parse_command(["train", backend, f"{flag}={expected}"], environ={})
        assert isinstance(command, TrainCommand)
        assert command.origins[path] != "default"
        assert value_at(command.config, path) == expected
