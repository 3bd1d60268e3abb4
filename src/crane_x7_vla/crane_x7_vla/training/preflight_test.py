from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crane_x7_vla.config.base import TrainingConfig
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.training import preflight
from crane_x7_vla.training.distributed import World
from crane_x7_vla.training.preflight import check_file, check_folder, device_of


@pytest.mark.parametrize(
    ("name", "world", "number"),
    [
        ("cuda", World(rank=0, size=1, local_rank=0), 0),
        ("cuda:1", World(rank=0, size=1, local_rank=0), 1),
        ("cuda", World(rank=3, size=4, local_rank=3), 3),
    ],
)
def test_the_gpu_of_a_process_has_a_number(
    name: str, world: World, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.cuda.set_device refuses a device without one."""
    chosen: list[int | None] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    before = torch.get_float32_matmul_precision()
    try:
        assert device_of(TrainingConfig(device=name), world) == torch.device("cuda", number)
    finally:
        torch.set_float32_matmul_precision(before)
    assert chosen == [number]


def test_a_folder_that_may_not_be_written_to_is_named_with_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_folder(tmp_path / "new" / "run", option="--output-dir")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=f"^{tmp_path} is a folder; name a file with --output"):
        check_file(tmp_path, option="--output")
    monkeypatch.setattr(preflight.os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match=f"^{tmp_path} may not be written to; choose another --output-dir"):
        check_folder(tmp_path / "new" / "run", option="--output-dir")


def test_a_file_that_exists_is_judged_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/stdout may be written to, /dev not; a file of somebody else's in one's own folder may not."""
    file = tmp_path / "report.json"
    file.write_text("")
    refused = tmp_path
    monkeypatch.setattr(preflight.os, "access", lambda path, _: path != refused)
    check_file(file, option="--output")
    with pytest.raises(ConfigError, match=f"^{tmp_path} may not be written to"):
        check_file(tmp_path / "new.json", option="--output")
    refused = file
    with pytest.raises(ConfigError, match=f"^{file} may not be written to; choose another --output, or see who owns"):
        check_file(file, option="--output")
