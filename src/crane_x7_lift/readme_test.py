from __future__ import annotations

import inspect
import re
from pathlib import Path

from crane_x7_vla.protocol import ARM_TOPIC, GRIPPER_TOPIC
from lift import make_env
from lift.make import DEFAULT_CAMERAS
from lift.nodes import topics

README = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Cells of the table under a header row that begins with ``heading``, without the markers of code."""
    table = re.search(rf"^\| {heading} .*\n\|[-|]+\n((?:\|.*\n)+)", README, flags=re.MULTILINE)
    assert table is not None
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def test_the_options_are_those_of_make_env() -> None:
    options = inspect.signature(make_env).parameters
    shown = {name: default for name, default, _ in rows("option")}
    assert list(shown) == [name for name, option in options.items() if option.kind is option.KEYWORD_ONLY]
    names = "` and `".join(camera.name for camera in DEFAULT_CAMERAS)
    size = {f"{camera.width} x {camera.height}" for camera in DEFAULT_CAMERAS}
    assert shown.pop("cameras") == f"{names}`, {size.pop()}"
    assert not size
    assert shown == {name: str(options[name].default) for name in shown}


def test_the_topics_are_those_of_the_node() -> None:
    assert [row[0] for row in rows("topic or service")] == [
        f"/{topics.JOINT_STATES}",
        *(f"/{topics.camera_topic(camera.name)}" for camera in DEFAULT_CAMERAS),
        topics.CLOCK,
        f"/{ARM_TOPIC}",
        f"/{GRIPPER_TOPIC}",
        *(f"/{topic}" for topic in (topics.OBJECT_POSE, topics.EPISODE_END, topics.RESET, topics.NEXT_SCENE)),
    ]


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
