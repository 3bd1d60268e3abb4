"""What the packages import is what they say they need: in setup.py for pip, in package.xml for ROS."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import setuptools

SOURCE = Path(__file__).resolve().parents[1] / "src"
PACKAGES = {
    "crane_x7_vla": "crane_x7_vla",
    "crane_x7_log": "crane_x7_log",
    "crane_x7_lift": "lift",
    "crane_x7_bringup": "crane_x7_bringup",
}
# Where the distribution is not called as what is imported of it.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "google_crc32c": "google-crc32c",
    "huggingface_hub": "huggingface-hub",
    "lift": "crane_x7_lift",
    "mujoco": "mujoco-core",
    "yaml": "PyYAML",
}


def imported(package: str) -> set[str]:
    """Third-party modules that the package's own files import anywhere; tests may need more."""
    names: set[str] = set()
    for path in (SOURCE / package / PACKAGES[package]).rglob("*.py"):
        if path.name.endswith("_test.py") or path.name == "conftest.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {PACKAGES[package]}


def setup_arguments(package: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py calls ``setup`` with."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(SOURCE / package)
    exec(compile((SOURCE / package / "setup.py").read_text(encoding="utf-8"), f"{package}/setup.py", "exec"), {})
    return given


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_declared(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = setup_arguments(package, monkeypatch)
    words = [
        *given["install_requires"],
        *(word for extra in given.get("extras_require", {}).values() for word in extra),
    ]
    by_pip = {re.split(r"[\[<>=!~ ]", word)[0] for word in words}
    manifest = ElementTree.parse(SOURCE / package / "package.xml")
    by_ros = {element.text for element in manifest.iter("exec_depend")}
    missing = {name for name in imported(package) if DISTRIBUTIONS.get(name, name) not in by_pip | by_ros}
    assert not missing, f"{package} imports {sorted(missing)}, which neither setup.py nor package.xml has"


@pytest.mark.parametrize("package", PACKAGES)
def test_extras_that_are_asked_for_exist(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = setup_arguments(package, monkeypatch)
    extras = {other: set(setup_arguments(other, monkeypatch).get("extras_require", {})) for other in PACKAGES}
    words = [
        *given["install_requires"],
        *(word for extra in given.get("extras_require", {}).values() for word in extra),
    ]
    for word in words:
        name, _, extra = word.partition("[")
        if name in PACKAGES and extra:
            assert extra.rstrip("]") in extras[name], word
