"""Data-parallel training: what ``torchrun`` says about this process, and the averaging across processes.

Gradients are averaged once per update, after accumulation, rather than by DistributedDataParallel's hooks: a backend
may then call any method of its model, parameters may go unused, and the result is the same. Adapters are small, so
overlapping the exchange with the backward pass would gain little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from crane_x7_vla.errors import ConfigError

_BUCKET_ELEMENTS = 2**24
"""Gradients are exchanged in buckets of this many numbers, so that no second copy of all of them is needed."""


@dataclass(frozen=True, slots=True)
class World:
    """rank: of this process among ``size``. local_rank: among those of this machine, the number of its GPU."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0


@contextmanager
def join_world(environ: Mapping[str, str], device_type: str) -> Iterator[World]:
    """The world that torchrun describes in ``environ``, joined while the context lasts; alone without torchrun.

    Raises ConfigError where there are more processes than GPUs.
    """
    world = World(
        rank=int(environ.get("RANK", "0")),
        size=int(environ.get("WORLD_SIZE", "1")),
        local_rank=int(environ.get("LOCAL_RANK", "0")),
    )
    if world.size == 1:
        yield world
        return
    if device_type == "cuda":
        if world.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {world.local_rank} of this machine has no GPU; start as many as there are: "
                f"torchrun --nproc_per_node={torch.cuda.device_count()}"
            )
        torch.cuda.set_device(world.local_rank)
    # The others wait while process 0 writes a checkpoint, which takes minutes for a large model on a slow disk.
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=timedelta(hours=1))
    try:
        yield world
    finally:
        dist.destroy_process_group()


def average_gradients(parameters: Iterable[Tensor], world: World) -> None:
    """Replace each gradient by its mean over all processes; one that is missing here counts as zero."""
    if world.size == 1:
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (bucket[0].dtype != parameter.grad.dtype or sum(g.numel() for g in bucket) > _BUCKET_ELEMENTS):
            _average(bucket, world)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _average(bucket, world)


def broadcast(tensors: Iterable[Tensor], world: World) -> None:
    """Overwrite each tensor by that of process 0."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def sums(values: Sequence[float], world: World, device: torch.device) -> list[float]:
    """Element-wise sums over all processes, which all give the same number of values."""
    if world.size == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather(tensor: Tensor, world: World, device: torch.device) -> list[Tensor]:
    """A CPU tensor of each process, by rank; all have the same shape."""
    if world.size == 1:
        return [tensor]
    moved = tensor.to(device)
    gathered = [torch.empty_like(moved) for _ in range(world.size)]
    dist.all_gather(gathered, moved)
    return [part.cpu() for part in gathered]


def barrier(world: World) -> None:
    """Wait for all processes."""
    if world.size > 1:
        dist.barrier()


def _average(gradients: Sequence[Tensor], world: World) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world.size
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()
