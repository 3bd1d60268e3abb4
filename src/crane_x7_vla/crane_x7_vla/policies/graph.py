"""A function of tensors on memory that is taken once, so that a GPU can replay it as one CUDA graph.

Launching the thousands of small kernels of a prediction one by one takes longer than running them. A graph is launched
once; it needs the same shapes and addresses every time, and a function that never waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
_WARM_UPS = 3  # calls before the capture: libraries choose kernels and take their memory in them
_KEPT = 16


class StaticFunction:
    """``function`` of host tensors by name, run on ``device`` in memory kept for each set of shapes.

    capture: as one CUDA graph for each set of shapes, which the first call with them captures; without it the same
    function is called on the same memory, which works on a CPU too. 16 sets of shapes are kept; then the oldest makes
    room.
    """

    def __init__(self, function: Callable[[Tensors], Tensor], *, device: torch.device, capture: bool) -> None:
        if capture and device.type != "cuda":
            raise ValueError(f"only a GPU captures CUDA graphs, not {device}")
        self._function = function
        self._device = device
        self._capture = capture
        self._programs: dict[tuple[object, ...], _Program] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if capture else None

    def __call__(self, inputs: Tensors) -> Tensor:
        """The result on the device, overwritten by the next call. Waits for nothing but a capture."""
        shapes = tuple((name, value.shape, value.dtype) for name, value in sorted(inputs.items()))
        if shapes not in self._programs:
            if len(self._programs) == _KEPT:
                del self._programs[next(iter(self._programs))]
            self._programs[shapes] = self._new_program(inputs)
        program = self._programs[shapes]
        program.fill(inputs)
        return program.run()

    def _new_program(self, inputs: Tensors) -> _Program:
        program = _Program(self._function, inputs, self._device)
        if self._capture:
            program.fill(inputs)
            program.capture(self._pool)
        return program


class _Program:
    """The function for one set of shapes, and its memory."""

    def __init__(self, function: Callable[[Tensors], Tensor], like: Tensors, device: torch.device) -> None:
        self._function = function
        self._device = device
        pinned = device.type == "cuda"  # what is not pinned is copied twice, and the copy is waited for
        self._host = {name: torch.empty_like(value, pin_memory=pinned) for name, value in like.items()}
        self._inputs = {name: torch.empty_like(value, device=device) for name, value in like.items()}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output = torch.empty(0)

    def fill(self, inputs: Tensors) -> None:
        """The caller has waited for the call before, as it read the result: the host memory is free again."""
        for name, value in inputs.items():
            self._host[name].copy_(value)
            self._inputs[name].copy_(self._host[name], non_blocking=True)

    def capture(self, pool: Any) -> None:
        """pool: memory that all graphs share, as none runs while another does."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._function(self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._output = self._function(self._inputs)
            self._graph = graph

    def run(self) -> Tensor:
        if self._graph is None:
            return self._function(self._inputs)
        self._graph.replay()
        return self._output
