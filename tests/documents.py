"""The documents taken apart, and what in the code they speak of."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from crane_x7_log.nodes import recorder_node
from crane_x7_vla.nodes import inference_node
from lift.nodes import expert_node, sim_node

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ("README.md", "README.ja.md", "docs/*.md", "src/*/README.md")
DOCUMENTS = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
GAP = "…"  # what a quoted message leaves out

NODES = {"sim": sim_node, "expert": expert_node, "recorder": recorder_node, "vla_inference": inference_node}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> Iterator[tuple[str, str]]:
    """(where, text) of the fenced blocks of a language."""
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^[ ]*```(\w*)\n(.*?)^[ ]*```$", text, flags=re.DOTALL | re.MULTILINE):
        if match[1] == language:
            yield f"{name(path)}:{text.count(chr(10), 0, match.start()) + 2}", match[2]


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^[ ]*```.*?^[ ]*```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def launch_arguments(package: str, file: str) -> dict[str, tuple[str, str]]:
    """{argument: (default, description)} that a launch file declares."""
    tree = ast.parse((ROOT / "src" / package / "launch" / file).read_text(encoding="utf-8"))
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "DeclareLaunchArgument":
            words = {word.arg: word.value for word in node.keywords}
            first, default, description = node.args[0], words["default_value"], words["description"]
            assert isinstance(first, ast.Constant)
            assert isinstance(description, ast.Constant)
            shown = str(default.value) if isinstance(default, ast.Constant) else "that of the package"
            found[str(first.value)] = (shown, str(description.value))
    return found


def check_code(text: str) -> None:
    """It compiles, and what it imports is there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for item in node.names:
                assert hasattr(module, item.name), f"{node.module} has no {item.name}"
        elif isinstance(node, ast.Import):
            for item in node.names:
                assert importlib.util.find_spec(item.name) is not None
