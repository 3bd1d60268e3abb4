from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node

from crane_x7_vla.errors import ConfigError
from crane_x7_vla.nodes.parameters import current, declare, parameter


@dataclass(frozen=True, kw_only=True)
class Settings:
    rate: float = parameter(10.0, "samples per second")
    count: int = parameter(3, "how many")
    active: bool = parameter(False, "whether")
    text: str = parameter("a b", "what is said")
    box: tuple[float, ...] = parameter((1.0, 2.0), "numbers")
    cameras: tuple[str, ...] = parameter((), "names")

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ConfigError(f"rate must be positive, got {self.rate}")


@pytest.fixture
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    arguments = ["--ros-args", *(word for pair in request.param for word in ("-p", pair))]
    context = Context()
    rclpy.init(context=context, args=arguments)
    node = Node("node", context=context, start_parameter_services=False)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


def given(*pairs: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("node", [pairs], indirect=True)


pytestmark = pytest.mark.ros


@given()
def test_defaults_and_descriptions(node: Node) -> None:
    assert declare(node, Settings) == Settings()
    assert node.describe_parameter("rate").description == "samples per second"


@given("rate:=5", "count:=7", "active:=true", "text:=x y", "box:=[3, 4]", "cameras:=[primary, wrist]")
def test_values_given_to_the_node_with_integers_for_numbers(node: Node) -> None:
    assert declare(node, Settings) == Settings(
        rate=5.0, count=7, active=True, text="x y", box=(3.0, 4.0), cameras=("primary", "wrist")
    )


@given('cameras:=[""]')
def test_an_empty_list(node: Node) -> None:
    assert declare(node, Settings).cameras == ()


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (("rate:=fast",), "parameter 'rate' must be a number, got 'fast'"),
        (("rate:=true",), "parameter 'rate' must be a number, got True"),
        (("count:=1.5",), "parameter 'count' must be an integer, got 1.5"),
        (("active:=1",), "parameter 'active' must be true or false, got 1"),
        (("text:=5",), "parameter 'text' must be a string, got 5; quote it"),
        (("box:=3.0",), "parameter 'box' must be a list, got 3.0"),
        (("box:=[a]",), "parameter 'box' must be a number, got 'a'"),
        (("rate:=-1",), "rate must be positive"),
    ],
    indirect=["node"],
)
def test_a_value_of_the_wrong_type_is_named(node: Node, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        declare(node, Settings)


@given()
def test_a_value_set_later_is_seen_and_checked(node: Node) -> None:
    declare(node, Settings)
    node.set_parameters([rclpy.Parameter("text", value="new"), rclpy.Parameter("count", value="many")])
    assert current(node, Settings, "text") == "new"
    with pytest.raises(ConfigError, match="'count' must be an integer"):
        current(node, Settings, "count")
