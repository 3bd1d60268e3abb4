"""The documents say what is: tables and quoted messages are the code's, examples run, links and files exist."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crane_x7_bringup.demo.goals import GOALS
from crane_x7_bringup.profiles import PROFILES
from crane_x7_vla.data.episode import CameraMetadata, EpisodeMetadata, EpisodeWriter, Step, encode_jpeg
from crane_x7_vla.robot import CRANE_X7
from tests.documents import DOCUMENTS, GAP, NODES, ROOT, blocks, check_code, launch_arguments, name, prose

INTERFACES = ROOT / "docs" / "ros_interface.md"

# -- tables made from the code ----------------------------------------------------------------------------------------

TABLE = re.compile(r"^(<!-- (parameters|arguments) of ([\w. -]+?) -->\n)((?:\|.*\n)*)", flags=re.MULTILINE)


def table(kind: str, subject: str) -> str:
    """The Markdown table of a node's parameters, or of the arguments of a launch file or a profile."""
    rows: list[tuple[str, object, str]]
    if kind == "parameters":
        fields = dataclasses.fields(NODES[subject].Settings)
        rows = [(field.name, field.default, field.metadata["description"]) for field in fields]
    elif subject in PROFILES:
        rows = [(item.name, item.default, item.description) for item in PROFILES[subject].arguments]
    else:
        rows = [(item, *rest) for item, rest in launch_arguments(*subject.split()).items()]
    lines = [f"| {kind.removesuffix('s')} | default | meaning |", "|---|---|---|"]
    lines += [f"| `{item}` | {shown(default)} | {text.replace('|', chr(92) + '|')} |" for item, default, text in rows]
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`" if value else "empty"
    return f"`{value}`" if value not in ("", "['']") else "empty"


def with_tables(text: str) -> str:
    """A document with its tables as the code has them."""
    return TABLE.sub(lambda match: match[1] + table(match[2], match[3]), text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_tables_are_those_of_the_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == with_tables(text), "type: python -m tests.documentation_test, which writes the tables anew"


def test_every_node_has_its_table() -> None:
    assert {match[3] for match in TABLE.finditer(INTERFACES.read_text(encoding="utf-8"))} >= set(NODES)


# -- goals ------------------------------------------------------------------------------------------------------------


def test_the_demos_goals_are_those_of_the_code() -> None:
    text = " ".join((ROOT / "docs" / "demo.md").read_text(encoding="utf-8").split())
    found = dict(re.findall(r"- \*\*([^*]+)\*\*:(?:(?! - \*\*).)*? Goal: ([^.]+)\.", text))
    assert found == {goal.experiment: str(goal).replace("%", " %") for goal in GOALS}


# -- messages ---------------------------------------------------------------------------------------------------------

QUOTED = [
    (f"{name(path)}: {match[1]}", match[1])
    for path in [ROOT / "docs" / "troubleshooting.md"]
    if path in DOCUMENTS
    for match in re.finditer(r"^\| `([^`]+)` \|", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
]


@functools.cache
def messages() -> list[str]:
    """Every text in the code, with GAP where a value is filled in."""
    found: list[str] = []
    for path in ROOT.glob("src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                found.append("".join(pieces(node)))
    found += re.findall(r'fail "([^"]*)"', (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8"))
    return found


def pieces(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub(r"%[sdg]|%\.\dg", GAP, node.value)
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from pieces(part)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from (*pieces(node.left), *pieces(node.right))
    elif isinstance(node, ast.IfExp):
        yield from pieces(node.body)
    else:
        yield GAP


@pytest.mark.parametrize("message", [message for _, message in QUOTED], ids=[where for where, _ in QUOTED])
def test_a_quoted_message_is_one_of_the_code(message: str) -> None:
    parts = [re.escape(part.strip()) for part in message.split(GAP)]
    assert any(re.search(".*".join(parts), text, flags=re.DOTALL) for text in messages())


# -- Python, links and paths ------------------------------------------------------------------------------------------


PYTHON = [(where, text) for path in DOCUMENTS for where, text in blocks(path, "python")]


@pytest.mark.parametrize(("where", "text"), PYTHON, ids=[where for where, _ in PYTHON])
def test_python_examples(where: str, text: str, workplace: Path) -> None:
    if where.startswith("docs/data_format.md"):
        record_episode(workplace / "data" / "tfrecord_logs")
        exec(compile(text, where, "exec"), {})
    else:
        check_code(text)


def record_episode(root: Path) -> None:
    metadata = EpisodeMetadata(
        robot=CRANE_X7.name,
        hz=10.0,
        instruction="pick up the red cube",
        cameras={"primary": CameraMetadata(width=16, height=16)},
        joint_names=CRANE_X7.joint_names,
    )
    writer = EpisodeWriter(root, metadata)
    state = np.zeros(8, np.float32)
    image = encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    writer.write(
        Step(images={"primary": image}, state=state, action=state, instruction=metadata.instruction, stamp=1.0)
    )
    writer.finish()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        file, _, anchor = target.partition("#")
        if "://" in file or file.startswith("mailto:"):
            continue
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{name(path)}: no {target}"
        if anchor:
            assert anchor in anchors(linked), f"{name(path)}: no heading for {target}"


def anchors(path: Path) -> set[str]:
    """Anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#{1,6} (.*)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_paths_of_the_repository_exist(path: Path) -> None:
    folders = "src|docs|tests|scripts|requirements"
    for named in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*\w", path.read_text(encoding="utf-8")):
        assert (ROOT / named).exists() or (path.parent / named).exists(), f"{name(path)}: no {named}"


def main() -> None:
    """Write the tables of every document anew."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        if text != with_tables(text):
            path.write_text(with_tables(text), encoding="utf-8")
            sys.stdout.write(f"wrote {name(path)}\n")


if __name__ == "__main__":
    main()
