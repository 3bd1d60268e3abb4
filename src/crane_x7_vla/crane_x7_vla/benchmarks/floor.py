"""The time that physics allows: what a call reads and computes, over what the device can in a second.

Every operation has to read the weights it uses and to do its arithmetic, and takes at least as long as the slower of
the two. All else that is read, such as the key-value cache, is left out, and so is attention on a CPU, of which torch
counts nothing; the true bound is a little higher.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_REPEATS = 20
_COPIED = {"cuda": 1 << 30, "cpu": 1 << 27}  # bytes: far more than any cache holds
_SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """bandwidth: bytes/s that a copy reads and writes. compute: FLOP/s of a product of large matrices."""

    bandwidth: float
    compute: float


@dataclass(frozen=True, slots=True)
class Operation:
    """flops: floating-point operations of the products. weight_bytes: of the weights it reads."""

    flops: int
    weight_bytes: int


def floor_seconds(operations: list[Operation], rates: Rates) -> float:
    """The least time for all of them, one after another."""
    return sum(max(o.weight_bytes / rates.bandwidth, o.flops / rates.compute) for o in operations)


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The best of several runs of each."""
    source = torch.ones(_COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = _best_seconds(lambda: target.copy_(source), device)
    side = _SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    multiplying = _best_seconds(lambda: left @ right, device)
    return Rates(bandwidth=2 * len(source) / copying, compute=2 * side**3 / multiplying)


class Operations(TorchDispatchMode):
    """While it is active, lists what is done with the weights of ``model``, each use of them anew."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.list: list[Operation] = []
        self._weights = {_memory(parameter) for parameter in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        counted = func._overloadpacket in flop_registry
        if not counted:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        made = {_memory(result) for result in results}
        weights = [
            leaf
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor) and _memory(leaf) in self._weights and _memory(leaf) not in made  # no views
        ]
        if func._overloadpacket is torch.ops.aten.embedding:
            weights = results  # the rows asked for alone
        flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out) if counted else 0
        if flops or weights:
            self.list.append(Operation(int(flops), sum(w.numel() * w.element_size() for w in weights)))
        return out


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _best_seconds(run: Callable[[], object], device: torch.device) -> float:
    times: list[float] = []
    for _ in range(_REPEATS):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
