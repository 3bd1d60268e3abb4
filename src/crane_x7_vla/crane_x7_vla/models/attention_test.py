from __future__ import annotations

import pytest
import torch

from crane_x7_vla.models.attention import kernels


@pytest.mark.parametrize(
    ("device", "flash", "allowed"), [("cuda", False, False), ("cuda", True, True), ("cpu", False, True)]
)
def test_the_flash_kernel_is_kept_out_on_a_gpu_and_within_the_call_alone(
    device: str, flash: bool, allowed: bool
) -> None:
    with kernels(torch.device(device), flash=flash):
        assert torch.backends.cuda.flash_sdp_enabled() == allowed
        assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
