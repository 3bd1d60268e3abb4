"""The function that a GPU captures as a graph gives what the plain path gives, here without capture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crane_x7_vla.backends import BACKENDS, backend_class, config_class
from crane_x7_vla.backends.base import Backend
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.policies.graph import StaticFunction
from crane_x7_vla.policies.policy import LocalPolicy, load_policy
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.types import Observation

torch.set_num_threads(1)
CPU = torch.device("cpu")
MakeObservation = Callable[[int], Observation]


def test_each_set_of_shapes_has_its_own_memory_that_later_calls_use_again() -> None:
    seen: list[int] = []

    def double(inputs: dict[str, Tensor]) -> Tensor:
        seen.append(inputs["x"].data_ptr())
        return 2 * inputs["x"]

    static = StaticFunction(double, device=CPU, capture=False)
    for values in ([1.0, 2.0], [3.0, 4.0], [5.0], [6.0, 7.0]):
        given = torch.tensor(values)
        assert static({"x": given}).tolist() == [2 * value for value in values]
        assert seen[-1] != given.data_ptr()
    assert seen[0] == seen[1] == seen[3] != seen[2]


def test_the_oldest_shapes_make_room() -> None:
    static = StaticFunction(lambda inputs: inputs["x"] + 1, device=CPU, capture=False)
    for size in range(1, 40):
        static({"x": torch.zeros(size)})
    assert len(static._programs) == 16


def test_a_cpu_captures_nothing() -> None:
    with pytest.raises(ValueError, match="only a GPU"):
        StaticFunction(lambda inputs: inputs["x"], device=CPU, capture=True)


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest, tiny_statistics: DatasetStatistics) -> Backend:
    tiny: Any = config_class(request.param).tiny()  # pyright: ignore[reportAttributeAccessIssue]
    config = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, action_source="commanded"))
    return backend_class(request.param)(config, robot=CRANE_X7, statistics=tiny_statistics)


@pytest.mark.parametrize("prompt_multiple", [1, 64])
def test_the_static_path_gives_the_actions_of_the_plain_one(
    backend: Backend, make_observation: MakeObservation, prompt_multiple: int
) -> None:
    """Where rounding moved a pixel by a level, a token may be its neighbour: hence the tolerance, of a bin."""
    model = backend.build()
    plain = LocalPolicy(backend, model)
    static = LocalPolicy(backend, model, graph=True, prompt_multiple=prompt_multiple)
    short = dataclasses.replace(make_observation(3), instruction="push")
    for observations in ([make_observation(0)], [make_observation(1), short], [make_observation(2)]):
        expected, found = (
            np.stack([chunk.actions for chunk in policy.infer(observations)]) for policy in (plain, static)
        )
        np.testing.assert_allclose(found, expected, atol=0.005)


class _OnTheDevice(TorchDispatchMode):
    """Refuses tensors of the host: bringing one to the device is a copy that a graph cannot hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        assert all(tensor.is_meta for tensor in tensors), f"{func} reads or makes a tensor on the host"
        return out


def test_after_the_first_call_nothing_is_read_from_the_device_or_brought_to_it(
    backend: Backend, make_observation: MakeObservation
) -> None:
    """On the meta device, which has no values: reading one raises."""
    processor, model = backend.processor, backend.for_inference(backend.build()).eval().to("meta")
    batch = processor.collate([processor.encode_raw(make_observation(0))], multiple=64)
    batch = {name: value.to("meta") for name, value in batch.items()}
    with torch.inference_mode():
        backend.predict(model, processor.prepare(batch))
        with _OnTheDevice():
            backend.predict(model, processor.prepare(batch))


def test_cameras_of_different_sizes_are_made_the_models_squares(
    backend: Backend, make_observation: MakeObservation
) -> None:
    seen = make_observation(0)
    larger = np.random.default_rng(1).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    seen = dataclasses.replace(seen, images={**seen.images, backend.spec.cameras[-1].name: larger})
    plain, raw = backend.processor.encode(seen), backend.processor.encode_raw(seen)
    prepared = backend.processor.prepare(backend.processor.collate([raw]))
    assert (prepared["pixel_values"][0] - plain["pixel_values"]).abs().max() < 0.02  # one level, normalised


def test_a_saved_policy_runs_on_static_memory(tiny_checkpoint: Path, make_observation: MakeObservation) -> None:
    (plain,), (static,) = (
        load_policy(tiny_checkpoint, graph=graph).infer([make_observation(0)]) for graph in (False, True)
    )
    np.testing.assert_allclose(static.actions, plain.actions, atol=0.005)
