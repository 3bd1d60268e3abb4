"""Which names are directories, and which may be asked from the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from crane_x7_vla.checkpoints.base_model import hub_revision, is_same_model, local_model, resolve_model
from crane_x7_vla.errors import CheckpointError


@pytest.mark.parametrize(
    "name", ["models/nowhere/", "./models/nowhere", "nowhere", "/nowhere/at/all", "./nowhere", "../no/where", "~/no"]
)
def test_a_base_model_that_is_no_directory_is_an_error_without_asking_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"base model {name} is not a directory"):
        resolve_model(name)


def test_a_directory_is_given_by_its_whole_path_and_other_names_are_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "openvla").mkdir()
    monkeypatch.chdir(tmp_path)
    assert local_model("models/tiny") == tmp_path / "models" / "tiny"
    assert local_model("openvla/openvla-7b") is None


def test_one_directory_has_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "other").mkdir()
    (tmp_path / "link").symlink_to("models/tiny")
    monkeypatch.chdir(tmp_path)
    for name in ("models/tiny", "./models/tiny/", "link"):
        assert is_same_model(name, str(tmp_path / "models" / "tiny"))
    assert not is_same_model("models/other", "models/tiny")
    assert not is_same_model("models/gone", "models/tiny")
    assert is_same_model("openvla/openvla-7b", "openvla/openvla-7b")


def test_the_revision_of_a_repository_is_known_from_its_local_copy() -> None:
    assert hub_revision(Path("/cache/models--openvla--openvla-7b/snapshots/31f090d")) == "31f090d"
    assert hub_revision(Path("/models/tiny")) is None
