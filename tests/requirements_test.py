"""What the packages import is what they say they need: in setup.py for pip, in package.xml for ROS."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
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


def files_of(package: str) -> list[Path]:
    """The package's own files; tests may need more."""
    paths = (SOURCE / package / PACKAGES[package]).rglob("*.py")
    return [path for path in paths if not path.name.endswith("_test.py") and path.name != "conftest.py"]


def names_in(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, those of ``from a import b`` as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def third_party(paths: Iterable[Path]) -> set[str]:
    roots = {name.split(".")[0] for path in paths for name in names_in(path)}
    return roots - sys.stdlib_module_names


def imported(package: str) -> set[str]:
    """Third-party modules that the package imports."""
    return third_party(files_of(package)) - {PACKAGES[package]}


def reached(paths: Iterable[Path], package: str) -> set[Path]:
    """The files of ``package`` that ``paths`` import, and those import in turn."""
    root, waiting, found = SOURCE / package, list(paths), set[Path]()
    while waiting:
        for name in names_in(waiting.pop()):
            file = root / f"{name.replace('.', '/')}.py"
            if name.startswith(f"{package}.") and file.is_file() and file not in found:
                found.add(file)
                waiting.append(file)
    return found


def setup_arguments(package: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py calls ``setup`` with."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(SOURCE / package)
    exec(compile((SOURCE / package / "setup.py").read_text(encoding="utf-8"), f"{package}/setup.py", "exec"), {})
    return given


def distributions(words: Iterable[str]) -> set[str]:
    """Of requirements, without extras and versions."""
    return {re.split(r"[\[<>=!~ ]", word)[0] for word in words}


def from_ros(package: str) -> set[str]:
    manifest = ElementTree.parse(SOURCE / package / "package.xml")
    return {element.text or "" for element in manifest.iter("exec_depend")}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_declared(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = setup_arguments(package, monkeypatch)
    words = [
        *given["install_requires"],
        *(word for extra in given.get("extras_require", {}).values() for word in extra),
    ]
    known = distributions(words) | from_ros(package)
    missing = {name for name in imported(package) if DISTRIBUTIONS.get(name, name) not in known}
    assert not missing, f"{package} imports {sorted(missing)}, which neither setup.py nor package.xml has"


def test_a_machine_that_only_records_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/ros_interface.md says: the library without [train], and no torch."""
    packages = ("crane_x7_log", "crane_x7_vla")
    own = files_of("crane_x7_log")
    library = reached(own, "crane_x7_vla")
    assert len(library) > 5
    words = [word for package in packages for word in setup_arguments(package, monkeypatch)["install_requires"]]
    known = distributions(words) | {name for package in packages for name in from_ros(package)}
    needed = third_party([*own, *library]) - set(packages)
    missing = {name for name in needed if DISTRIBUTIONS.get(name, name) not in known}
    assert not missing, f"recording imports {sorted(missing)}"
    assert "torch" not in needed


def test_documented_pip_lines_name_packages_and_extras_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [path for pattern in ("*.md", "docs/*.md", "src/*/README.md") for path in SOURCE.parent.glob(pattern)]
    lines = [
        line for path in documents for line in path.read_text(encoding="utf-8").splitlines() if "pip install" in line
    ]
    named = [match.groups() for line in lines for match in re.finditer(r"src/(\w+)(?:\[([\w,]+)\])?", line)]
    assert ("crane_x7_vla", "train") in named
    for package, extras in named:
        given = setup_arguments(package, monkeypatch).get("extras_require", {})
        assert set(extras.split(",") if extras else []) <= set(given), f"{package}[{extras}]"


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
