"""The command of health checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from crane_x7_bringup.health import main
from crane_x7_vla import health


def test_it_is_healthy_when_every_named_node_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(health.STATUS_DIR, str(tmp_path))
    health.report(tmp_path, "sim", None)
    assert main(["sim"]) == 0
    assert main(["sim", "expert"]) == 1
    assert capsys.readouterr().out == "healthy\nexpert is not running yet\n"


def test_without_a_folder_it_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(health.STATUS_DIR, raising=False)
    assert main(["sim"]) == 2
    assert "CRANE_X7_STATUS_DIR is not set" in capsys.readouterr().err
