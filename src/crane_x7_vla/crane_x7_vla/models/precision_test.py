from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crane_x7_vla.backends import BACKENDS, backend_class, config_class
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.models.precision import keep_as_computed
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.types import Observation

torch.set_num_threads(1)


def with_adapters(name: str, folder: Path, statistics: DatasetStatistics) -> tuple[Any, nn.Module]:
    """A backend and its model on a base in float32, the adapters no longer zero."""
    config = config_class(name).tiny()  # pyright: ignore[reportAttributeAccessIssue]
    config = replace(config, data=replace(config.data, action_source="commanded"))
    base = backend_class(name)(config, robot=CRANE_X7, statistics=statistics)
    base.save(base.build(), folder)
    block = replace(getattr(config, config.block), model_id=str(folder), use_lora=True)
    config = replace(config, training=replace(config.training, mixed_precision="bf16"), **{config.block: block})
    backend = backend_class(name)(config, robot=CRANE_X7, statistics=statistics)
    model = backend.build()
    for index, (key, parameter) in enumerate(model.named_parameters()):
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(index))
    return backend, model


@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_changes_in_what_autocast_computes(
    name: str, tmp_path: Path, tiny_statistics: DatasetStatistics, make_observation: Callable[[int], Observation]
) -> None:
    backend, model = with_adapters(name, tmp_path, tiny_statistics)
    seen = make_observation(0)
    actions = seen.state + 0.05 * torch.ones(backend.spec.action_horizon, 8).numpy()
    batch = backend.processor.collate([backend.processor.encode(seen, actions)])

    def results() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = backend.loss(model.eval(), batch)
            with torch.inference_mode():
                return [loss.value.detach(), *loss.metrics.values(), backend.comparable(model, batch)]

    before = results()
    types = {key: parameter.dtype for key, parameter in model.named_parameters()}
    keep_as_computed(model, torch.bfloat16, trained=False)
    assert all(torch.equal(*pair) for pair in zip(before, results(), strict=True))
    changed = {key for key, parameter in model.named_parameters() if parameter.dtype != types[key]}
    assert any(".qkv." in key for key in changed)
    assert any(".down_proj." in key for key in changed)
    assert not any(parameter.requires_grad for key, parameter in model.named_parameters() if key in changed)
    keep_as_computed(model, torch.bfloat16, trained=True)
    assert all(torch.equal(*pair) for pair in zip(before, results(), strict=True))
    assert all(layer.weight.dtype == torch.bfloat16 for layer in model.modules() if isinstance(layer, nn.Linear))
