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
        "LOWEST": torch.finfo(dtype).min,
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
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments and results as in the operator's schema."""
    grad = rgb.new_empty(0) if scale is None else new_gradient(rgb, image.shape[1])
    if image.numel() == 0:
        return image.new_zeros(len(image)), grad.zero_()
    constant = constant_of(image, sigma if slot_sigma is None else slot_sigma, density)
    scales = None if scale is None else image.new_full((len(image),), scale)
    sums = _launch(grad, scales, image, rgb, mask_logits, slot_sigma, sigma, kind, sigmoid)
    return sums.sum(dim=1) + constant, grad


def backward(
    grad_nll: Tensor,
    kept: Tensor | None,
    image: Tensor | None,
    rgb: Tensor | None,
    mask_logits: Tensor | None,
    slot_sigma: Tensor | None,
    sigma: float,
    kind: str,
    sigmoid: bool,
) -> Tensor:
    """Launch the kernel for the gradient; arguments and result as in the operator's schema."""
    if kept is not None:
        return torch.mul(kept, grad_nll.view(-1, 1, 1, 1, 1), out=torch.empty_like(kept))
    assert image is not None
    assert rgb is not None
    grad = new_gradient(rgb, image.shape[1])
    if image.numel() == 0:
        return grad.zero_()
    scales = grad_nll.contiguous()
    _launch(grad, scales, image, rgb, mask_logits, slot_sigma, sigma, kind, sigmoid)
    return grad


def _launch(
    grad: Tensor,
    scales: Tensor | None,
    image: Tensor,
    rgb: Tensor,
    mask_logits: Tensor | None,
    slot_sigma: Tensor | None,
    sigma: float,
    kind: str,
    sigmoid: bool,
) -> Tensor:
    """Write the gradient, each image's times its scale, if there are any.

    Returns:
        Sums of the negative log-likelihood without its constant, [B, blocks].
    """
    image, wanted = image.contiguous(), scales is not None
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
        image if scales is None else scales, grad, sums, pixels, blocks, *rgb_strides,
        *mask_strides[:2], mask_strides[3], *grad_strides[1:],
        PER_SLOT=slot_sigma is not None, SIGMOID=sigmoid, WANTED=wanted, **options,
    )  # fmt: skip
    return sums
