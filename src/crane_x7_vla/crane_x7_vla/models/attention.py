"""Scaled dot-product attention by torch's own kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_WITHOUT_FLASH = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH, SDPBackend.CUDNN_ATTENTION]


def attend(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b g k d"],
    value: Float[Tensor, "b g k d"],
    *,
    mask: Bool[Tensor, "b 1 #n k"] | None = None,
    causal: bool = False,
    flash: bool = True,
) -> Float[Tensor, "b h n d"]:
    """Each query's mean of the values, weighted by its likeness to the keys; g heads of keys serve h of queries.

    ``causal`` and a mask exclude each other (torch raises). flash: see ``kernels``.
    """
    grouped = query.shape[1] != key.shape[1]
    with kernels(query.device, flash=flash):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def kernels(device: torch.device, *, flash: bool) -> AbstractContextManager[object]:
    """In which torch chooses its kernel. It tries the flash kernel first, which takes no mask and half precision only;
    on a GPU without ``flash`` it does not try it."""
    return nullcontext() if flash or device.type != "cuda" else sdpa_kernel(_WITHOUT_FLASH)
