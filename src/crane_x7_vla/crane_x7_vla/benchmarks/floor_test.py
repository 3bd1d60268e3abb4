"""What a call must read and compute is counted exactly, on layers whose counts are known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crane_x7_vla.benchmarks.floor import Operation, Operations, Rates, floor_seconds, measure_rates

torch.set_num_threads(1)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 8)
        self.linear = nn.Linear(8, 16, bias=False)
        self.output = nn.Linear(16, 50, bias=False)
        self.unused = nn.Linear(1000, 1000)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.linear(self.linear(self.embedding(ids)), self.output.weight[10:20])


def test_weights_count_where_they_are_used_and_no_more_of_them_than_that() -> None:
    model = Small()
    with torch.inference_mode(), Operations(model) as operations:
        model(torch.zeros(1, 3, dtype=torch.int64))
    assert operations.list == [
        Operation(flops=0, weight_bytes=3 * 8 * 4),
        Operation(flops=2 * 3 * 8 * 16, weight_bytes=8 * 16 * 4),
        Operation(flops=2 * 3 * 16 * 10, weight_bytes=16 * 10 * 4),
    ]


def test_each_pass_reads_the_weights_anew_and_products_without_weights_are_arithmetic() -> None:
    layer = nn.Linear(8, 8, bias=False)
    heads = torch.ones(2, 5, 8)
    with torch.inference_mode(), Operations(layer) as operations:
        for _ in range(2):
            layer(torch.ones(1, 8))
        torch.bmm(heads, heads.mT)
    assert sum(operation.weight_bytes for operation in operations.list) == 2 * 8 * 8 * 4
    assert sum(operation.flops for operation in operations.list) == 2 * (2 * 8 * 8) + 2 * (2 * 5 * 8 * 5)


def test_the_floor_is_the_slower_of_reading_and_computing_of_each_operation() -> None:
    rates = Rates(bandwidth=100.0, compute=1000.0)
    assert floor_seconds([Operation(1000, 10), Operation(10, 100)], rates) == pytest.approx(2.0)


def test_a_cpu_has_rates() -> None:
    rates = measure_rates(torch.device("cpu"), torch.float32)
    assert rates.bandwidth > 0
    assert rates.compute > 0
