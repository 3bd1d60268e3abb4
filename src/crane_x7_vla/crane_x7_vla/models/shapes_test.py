"""The shapes written in the signatures of the models hold while a model runs."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from crane_x7_vla.models import action_tokens, attention, decoder, decoding, heads, openvla, openvla_oft, prismatic, vit
from crane_x7_vla.models.decoder import DecoderConfig
from crane_x7_vla.models.openvla import OpenVLA
from crane_x7_vla.models.openvla_oft import OFTHeadConfig, OpenVLAOFT
from crane_x7_vla.models.prismatic import PrismaticConfig
from crane_x7_vla.models.vit import ViTConfig

torch.set_num_threads(1)
MODULES = (attention, vit, decoder, prismatic, heads, openvla_oft, decoding, openvla, action_tokens)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the tensors of each call against their annotations; jaxtyping binds the names of the dimensions."""
    hints = typing.get_type_hints(function)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        for name, value in signature.bind(*arguments, **named).arguments.items():
            check(value, hints.get(name), f"{function.__qualname__}({name})")
        result = function(*arguments, **named)
        check(result, hints.get("return"), f"{function.__qualname__}()")
        return result

    return jaxtyping.jaxtyped(call, typechecker=None)


def check(value: Any, hint: Any, where: str) -> None:
    choices = [
        c for c in (*typing.get_args(hint), hint) if isinstance(c, type) and issubclass(c, jaxtyping.AbstractArray)
    ]
    if isinstance(value, Tensor) and choices and not any(isinstance(value, choice) for choice in choices):
        raise TypeError(f"{where}: {tuple(value.shape)} is not {' or '.join(c.__name__ for c in choices)}")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        for name, value in vars(module).copy().items():
            if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
                monkeypatch.setattr(module, name, checked(value))
            if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module.__name__:
                for method, function in vars(value).copy().items():
                    if isinstance(function, types.FunctionType) and method != "__init__":
                        monkeypatch.setattr(value, method, checked(function))


def trunk(*, film: bool) -> PrismaticConfig:
    film_width = 24 if film else None
    tower = ViTConfig(image_size=16, patch_size=8, width=16, blocks=1, heads=2, mlp_width=24, film_width=film_width)
    llm = DecoderConfig(
        vocab_size=20,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return PrismaticConfig(towers=(tower, tower), decoder=llm)


@pytest.fixture
def model(checks: None) -> OpenVLAOFT:
    head = OFTHeadConfig(action_dim=3, action_horizon=2, hidden_dim=8, num_blocks=1, state_dim=3)
    return OpenVLAOFT(trunk(film=True), head)


def inputs() -> dict[str, Tensor]:
    return {
        "pixel_values": torch.randn(2, 12, 16, 16),
        "input_ids": torch.randint(20, (2, 14)),
        "prompt_length": torch.tensor([5, 7]),
        "proprio": torch.randn(2, 3),
        "attention_mask": torch.arange(14) < torch.tensor([[12], [14]]),
    }


def test_a_forward_pass_keeps_to_every_written_shape(model: OpenVLAOFT) -> None:
    assert model(**inputs()).shape == (2, 2, 3)


def test_the_check_notices_a_wrong_shape(model: OpenVLAOFT) -> None:
    with pytest.raises(TypeError, match=r"OpenVLAOFT.forward\(prompt_length\)"):
        model(**{**inputs(), "prompt_length": torch.tensor([5, 7, 7])})


@pytest.mark.usefixtures("checks")
def test_action_tokens_keep_to_every_written_shape() -> None:
    model, bins = OpenVLA(trunk(film=False)), action_tokens.TokenBins(end=18, bins=8)
    pixels, prompts, length = torch.randn(2, 6, 16, 16), torch.randint(20, (2, 7)), torch.tensor([5, 7])
    targets = bins.ids(torch.rand(2, 3))
    assert model(pixels, prompts, targets, length).shape == (2, 3, 20)
    tokens = model.generate(pixels, prompts, length, count=3, rows=bins.rows)
    assert bins.values(tokens).shape == (2, 3)
