"""In which type weights are kept and computed with."""

from __future__ import annotations

import torch
from torch import nn


def autocast_type(mixed_precision: str) -> torch.dtype | None:
    """The type of ``training.mixed_precision``: bf16 or fp16; None for no, which computes in float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}[mixed_precision]


def keep_as_computed(model: nn.Module, dtype: torch.dtype, *, trained: bool) -> None:
    """Keep the weights of linear and convolution layers in the type in which autocast computes with them.

    The results are the same to the bit. A base that is published in float32 takes half the memory then, and autocast,
    which converts frozen weights anew at every call, has nothing to convert. trained: those that require a gradient
    too, for a model that is not trained on.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for parameter in layer.parameters(recurse=False):
                if trained or not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)
