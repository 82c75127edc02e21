"""Launcher of the Triton kernel of mixture_nll."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from emorl.ops.mixture_nll import constant_of, new_gradient
from emorl.ops.triton.mixture_nll_kernels import mixture_nll_kernel

_BYTES_OF_A_BLOCK = 8192


def _pixel_strides(slots: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The tensor, copied if pixels are not evenly spaced, and strides of B, K, C and N."""
    if slots.shape[3] > 1 and slots.stride(3) != slots.shape[4] * slots.stride(4):
        slots = slots.contiguous()
    return slots, (*slots.stride()[:3], slots.stride(4 if slots.shape[4] > 1 else 3))


def _options(slots: int, channels: int, dtype: torch.dtype, kind: str) -> dict[str, Any]:
    """A program holds some [BLOCK_K, BLOCK_N] arrays in registers; 4 warps share them."""
    block_k = triton.next_power_of_2(slots)
    return {
        "SLOTS": slots,
        "CHANNELS": channels,
        "GAUSSIAN": kind == "gaussian",
        "WIDTH": channels if kind == "mixture_joint" else 1,
        "LARGEST": math.sqrt(torch.finfo(dtype).max) / 4,
        "BLOCK_K": block_k,
        "BLOCK_N": min(128, _BYTES_OF_A_BLOCK // (dtype.itemsize * block_k)),
    }


def forward(
    image: Tensor,
    rgb: Tensor,
    mask_logits: Tensor | None,
    slot_sigma: Tensor | None,
    sigma: float,
    kind: str,
    sigmoid: bool,
    density: bool,
    wanted: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments and results as in the operator's schema."""
    image = image.contiguous()
    grad = new_gradient(rgb, image.shape[1]) if wanted else image.new_empty(0)
    constant = constant_of(image, sigma if slot_sigma is None else slot_sigma, density)
    if image.numel() == 0:
        return image.new_zeros(len(image)), grad.zero_()
    if mask_logits is None:
        rgb, mask_logits = rgb[:, :, :-1], rgb[:, :, -1:]
    rgb, rgb_strides = _pixel_strides(rgb)
    mask_logits, mask_strides = _pixel_strides(mask_logits)
    grad_strides = _pixel_strides(grad)[1] if wanted else (0, 0, 0, 0)
    batch, slots, channels = rgb.shape[:3]
    pixels = rgb.shape[3] * rgb.shape[4]
    options = _options(slots, channels, image.dtype, kind)
    blocks = triton.cdiv(pixels, options["BLOCK_N"])
    sums = image.new_empty(batch, blocks)
    mixture_nll_kernel[(batch * blocks,)](
        image, rgb, mask_logits,
        image.new_full((slots,), sigma) if slot_sigma is None else slot_sigma.contiguous(),
        grad, sums, pixels, blocks, *rgb_strides, *mask_strides[:2], mask_strides[3],
        *grad_strides[1:],
        PER_SLOT=slot_sigma is not None, SIGMOID=sigmoid, WANTED=wanted, **options,
    )  # fmt: skip
    return sums.sum(dim=1) + constant, grad


def backward(grad_nll: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale the gradient that the forward pass computed."""
    scaled = torch.empty_like(grad, dtype=dtype)
    return torch.mul(grad, grad_nll.view(-1, 1, 1, 1, 1), out=scaled)
