"""Who may import whom (docs/architecture.md). Layers keep the leaves light and the parts replaceable."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
ROOTS = {
    "crane_x7_vla": SOURCE / "crane_x7_vla" / "crane_x7_vla",
    "crane_x7_log": SOURCE / "crane_x7_log" / "crane_x7_log",
    "lift": SOURCE / "crane_x7_lift" / "lift",
    "crane_x7_bringup": SOURCE / "crane_x7_bringup" / "crane_x7_bringup",
}

# Modules that import nothing heavier than numpy and small pure libraries; a fresh interpreter shows it.
LEAVES = [
    "crane_x7_vla.command",
    "crane_x7_vla.health",
    "crane_x7_vla.errors",
    "crane_x7_vla.protocol",
    "crane_x7_vla.types",
    "crane_x7_vla.robot",
    "crane_x7_vla.kinematics",
    "crane_x7_vla.trajectory",
    "crane_x7_vla.safety",
    "crane_x7_vla.data.tfrecord",
    "crane_x7_vla.data.episode",
    "crane_x7_vla.data.metadata",
    "crane_x7_vla.data.statistics",
    "crane_x7_vla.data.step",
    "crane_x7_vla.transforms.action",
    "crane_x7_vla.transforms.image",
    "crane_x7_vla.transforms.prompt",
    "crane_x7_vla.transforms.state",
    "crane_x7_vla.config.base",
    "crane_x7_vla.config.schema",
    "crane_x7_vla.backends",
    "crane_x7_vla.backends.prismatic_config",
    "crane_x7_vla.backends.openvla.config",
    "crane_x7_vla.backends.openvla_oft.config",
    "crane_x7_vla.backends.minivla.config",
    "crane_x7_vla.training.arguments",
    "crane_x7_vla.training.cli",
    "crane_x7_vla.policies.executor",
    "crane_x7_vla.policies.pilot",
    "crane_x7_log.recorder",
    "lift",
    "lift.interface",
    "lift.expert",
    "lift.wilson",
    "crane_x7_bringup.child",
    "crane_x7_bringup.profiles",
    "crane_x7_bringup.supervisor",
    "crane_x7_bringup.up",
]
HEAVY = ("torch", "tensorflow", "rclpy", "cv2", "transformers", "peft", "mujoco")

# Inside crane_x7_vla: what each part may import of its siblings, besides itself.
VOCABULARY = {"command", "health", "errors", "protocol", "types", "robot", "kinematics", "trajectory", "safety"}
LOWER = VOCABULARY | {"data", "transforms", "config"}
ALLOWED_PARTS = {
    **dict.fromkeys(VOCABULARY, VOCABULARY),
    "data": VOCABULARY | {"transforms"},
    "transforms": VOCABULARY | {"data"},
    "config": LOWER | {"backends"},
    "models": LOWER,
    "checkpoints": LOWER | {"models"},
    "backends": LOWER | {"models", "checkpoints"},
    "training": LOWER | {"models", "checkpoints", "backends"},
    "policies": LOWER | {"models", "checkpoints", "backends"},
    "nodes": LOWER | {"policies", "backends"},
    "benchmarks": LOWER | {"models", "checkpoints", "backends", "training", "policies"},
    "scripts": LOWER | {"models", "checkpoints", "backends", "training", "policies"},
}
ALLOWED_PACKAGES = {
    "crane_x7_vla": set(),
    "crane_x7_log": {"crane_x7_vla"},
    "lift": {"crane_x7_vla"},
    "crane_x7_bringup": {"crane_x7_vla", "crane_x7_log", "lift"},
}
# What other packages see of the library; lift.nodes and lift.evaluate see more than the core of lift.
ALLOWED_OF_LIBRARY = {
    "crane_x7_log": VOCABULARY | {"data", "nodes"},
    "lift": VOCABULARY,
    "lift outer": VOCABULARY | {"nodes", "policies", "data"},
}
LIFT_OUTER = {"nodes", "evaluate"}


def modules(package: str) -> list[Path]:
    return [
        p for p in sorted(ROOTS[package].rglob("*.py")) if not p.name.endswith("_test.py") and p.name != "conftest.py"
    ]


def imports(path: Path) -> set[str]:
    """Absolute module names that the file imports anywhere, relative imports are not used in this project."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path, package: str) -> str:
    relative = path.relative_to(ROOTS[package])
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("package", ROOTS)
def test_packages_import_only_the_packages_below_them(package: str) -> None:
    """Their tests too."""
    for path in sorted(ROOTS[package].rglob("*.py")):
        for name in imports(path):
            top = name.split(".")[0]
            if top in ROOTS and top != package:
                assert top in ALLOWED_PACKAGES[package], f"{path} imports {name}"


def test_parts_of_the_library_import_only_the_layers_below_them() -> None:
    for path in modules("crane_x7_vla"):
        part = part_of(path, "crane_x7_vla")
        if part == "__init__":
            continue
        assert part in ALLOWED_PARTS, f"{path}: a new part of the library needs a place in the layers"
        for name in imports(path):
            pieces = name.split(".")
            if pieces[0] == "crane_x7_vla" and len(pieces) > 1 and pieces[1] != part:
                assert pieces[1] in ALLOWED_PARTS[part], f"{path.relative_to(SOURCE)} ({part}) imports {name}"


@pytest.mark.parametrize("package", ["crane_x7_log", "lift"])
def test_other_packages_see_only_their_share_of_the_library(package: str) -> None:
    for path in modules(package):
        outer = package == "lift" and part_of(path, package) in LIFT_OUTER
        allowed = ALLOWED_OF_LIBRARY["lift outer" if outer else package]
        for name in imports(path):
            pieces = name.split(".")
            if pieces[0] == "crane_x7_vla" and len(pieces) > 1:
                assert pieces[1] in allowed, f"{path.relative_to(SOURCE)} imports {name}"


def test_rclpy_is_imported_in_nodes_folders_and_bringup_only() -> None:
    for package in ROOTS:
        if package == "crane_x7_bringup":
            continue
        for path in modules(package):
            if "nodes" in path.relative_to(ROOTS[package]).parts[:-1]:
                continue
            found = {n for n in imports(path) if n.split(".")[0] in ("rclpy", "sensor_msgs", "trajectory_msgs")}
            assert not found, f"{path.relative_to(SOURCE)} imports {sorted(found)}"


def test_a_backend_never_imports_another_backends_code() -> None:
    families = [
        p.name for p in (ROOTS["crane_x7_vla"] / "backends").iterdir() if p.is_dir() and p.name != "__pycache__"
    ]
    for family in families:
        for path in (ROOTS["crane_x7_vla"] / "backends" / family).glob("*.py"):
            for name in imports(path):
                other = [f for f in families if f != family and name.startswith(f"crane_x7_vla.backends.{f}.backend")]
                assert not other, f"{path.relative_to(SOURCE)} imports {name}"


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_load_nothing_heavy(leaf: str) -> None:
    code = f"import sys, {leaf}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "", f"{leaf} loads {done.stdout.strip()}"


def test_no_file_reads_what_is_outside_the_repository_and_no_name_says_nothing() -> None:
    for package in ROOTS.values():
        for path in package.rglob("*.py"):
            assert "../shared" not in path.read_text(), path
            assert path.stem not in {"utils", "util", "helpers", "common", "misc", "manager"}, path


def test_init_files_are_empty_but_for_the_tables() -> None:
    exceptions = {ROOTS["crane_x7_vla"] / "backends" / "__init__.py", ROOTS["lift"] / "__init__.py"}
    for package in ROOTS.values():
        for path in package.rglob("__init__.py"):
            if path not in exceptions:
                assert path.read_text().strip() == "", path
