from __future__ import annotations

import pytest
import torch

from crane_x7_vla.errors import ConfigError
from crane_x7_vla.training.distributed import World, average_gradients, gather, join_world, sums


def test_without_torchrun_a_process_is_alone_and_nothing_is_exchanged() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    with join_world({}, "cpu") as world:
        assert world == World(rank=0, size=1, local_rank=0)
        assert world.is_main
        assert sums([1.0, 2.5], world, torch.device("cpu")) == [1.0, 2.5]
        average_gradients([weight], world)
        assert weight.grad is None
        (state,) = gather(torch.ones(3), world, torch.device("cpu"))
        assert state.tolist() == [1, 1, 1]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environ = {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"}
    with (
        pytest.raises(ConfigError, match=r"process 2 of this machine has no GPU; .*--nproc_per_node=2"),
        join_world(environ, "cuda"),
    ):
        pytest.fail("joined a world without a GPU for this process")


def test_gradients_of_several_processes_are_averaged_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the exchange that adds what a second process would: ones everywhere."""
    from crane_x7_vla.training import distributed

    exchanged: list[int] = []

    def all_reduce(flat: torch.Tensor) -> None:
        exchanged.append(flat.numel())
        flat += 1

    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(distributed, "_BUCKET_ELEMENTS", 4)
    shapes = [(2, 2), (3,), (1,), (5,)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters[:-1]:
        parameter.grad = torch.full_like(parameter, 3.0)
    half = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    half.grad = torch.full_like(half, 5.0)
    average_gradients([*parameters, half], World(rank=0, size=2))
    for parameter in parameters[:-1]:
        assert parameter.grad is not None
        assert (parameter.grad == 2).all()
    assert parameters[-1].grad is not None
    assert (parameters[-1].grad == 0.5).all()  # it had none here, and one there
    assert (half.grad == 3).all()
    assert sum(exchanged) == 15
    assert len(exchanged) > 2
