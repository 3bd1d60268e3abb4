from __future__ import annotations

from pathlib import Path

import pytest

from crane_x7_bringup.demo.claim import claimed
from crane_x7_vla.errors import ConfigError


def test_one_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    data, report, other = tmp_path / "data", tmp_path / "report", tmp_path / "other"
    with claimed(data, report), claimed(other):
        with pytest.raises(ConfigError, match=f"another demo is writing to {report}; wait for it"), claimed(report):
            pass
        # One that was refused holds none of its folders.
        with pytest.raises(ConfigError), claimed(tmp_path / "free", data):
            pass
        with claimed(tmp_path / "free"):
            pass
    with claimed(data, report):
        pass
