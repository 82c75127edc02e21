"""Launchers of slot attention's Triton kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from emorl.ops import library
from emorl.ops.triton import limits
from emorl.ops.triton.slot_attention_kernels import (
    add_shares_kernel,
    slot_attention_backward_kernel,
    slot_attention_kernel,
)


class _Arguments(NamedTuple):
    """What both passes hand to their kernels; without v, k plays its part as well."""

    q: Tensor
    k: Tensor
    v: Tensor
    logit_bias: Tensor
    slot_mask: Tensor
    options: dict[str, Any]
    sizes: tuple[int, int, int, int, int]  # slots, pixels, key_width, value_width, shares

    @property
    def has_mask(self) -> bool:
        return bool(self.options["HAS_MASK"])


def _prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    logit_bias: Tensor | None,
    slot_mask: Tensor | None,
    eps: float,
) -> _Arguments:
    q, k = q.contiguous(), k.contiguous()
    values = k if v is None else v.contiguous()
    (batch, slots, key_width), (_, pixels, value_width) = q.shape, values.shape
    layout = _layout(q, values)
    shares = min(triton.cdiv(pixels, layout["BLOCK_N"]), triton.cdiv(_programs(q), batch or 1))
    options = {
        "EPS": eps,
        "LOWEST": torch.finfo(q.dtype).min,
        "SHARED": v is None,
        "HAS_BIAS": logit_bias is not None,
        "HAS_MASK": slot_mask is not None,
        **layout,
    }
    bias = q if logit_bias is None else logit_bias.contiguous()
    mask = q if slot_mask is None else slot_mask.to(q.dtype, memory_format=torch.contiguous_format)
    sizes = (slots, pixels, key_width, value_width, max(1, shares))
    return _Arguments(q, k, values, bias, mask, options, sizes)


def _layout(q: Tensor, values: Tensor) -> dict[str, int]:
    """Sizes of the kernels' blocks and options of their launch; `limits` knows what fits."""
    slots, key_width, value_width = q.shape[1], q.shape[2], values.shape[2]
    sizes = slots, max(key_width, value_width), q.dtype
    layout = limits.slot_attention_layout(*sizes, library.shared_memory(q.device))
    if layout is None:
        raise ValueError(f"slot_attention: {limits.slot_attention(*sizes, q.device)}")
    return {
        "BLOCK_K": limits.padded(slots),
        "BLOCK_N": layout.pixels,
        "BLOCK_D": limits.padded(key_width),
        "BLOCK_E": limits.padded(value_width),
        "num_stages": layout.stages,
        "num_warps": layout.warps,
    }


def _programs(tensor: Tensor) -> int:
    """How many programs fill the GPU; in the interpreter a few, so that sums have several parts."""
    if not tensor.is_cuda:
        return 4
    return 4 * torch.cuda.get_device_properties(tensor.device).multi_processor_count


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    logit_bias: Tensor | None,
    slot_mask: Tensor | None,
    eps: float,
    return_attention: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward kernels; arguments and results as in the operator's schema."""
    args = _prepare(q, k, v, logit_bias, slot_mask, eps)
    slots, pixels, _, value_width, shares = args.sizes
    batch = q.shape[0]
    updates, mass = q.new_empty(batch, slots, value_width), q.new_empty(batch, slots)
    attention = q.new_empty((batch, slots, pixels) if return_attention else (0,))
    if mass.numel() == 0:
        return updates, mass, attention
    sums = q.new_empty(batch, shares, slots, value_width)
    masses = q.new_empty(batch, shares, slots)
    slot_attention_kernel[(batch * shares,)](
        *args[:5], sums, masses, attention, *args.sizes,
        WANT_ATTENTION=return_attention, **args.options,
    )  # fmt: skip
    _add_shares(args, sums, masses, updates, mass, normalise=True)
    return updates, mass, attention


def backward(
    grad_updates: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    logit_bias: Tensor | None,
    slot_mask: Tensor | None,
    updates: Tensor,
    mass: Tensor,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward kernels; arguments and results as in the operator's schema."""
    args = _prepare(q, k, v, logit_bias, slot_mask, eps)
    want_q, want_k, want_v, want_bias = wanted
    grad_q, grad_k = (q.new_empty(x.shape if want else 0) for x, want in ((q, want_q), (k, want_k)))
    grad_v = q.new_empty(args.v.shape if want_v and v is not None else 0)
    if mass.numel() == 0:
        return grad_q, grad_k.zero_(), grad_v.zero_(), q.new_empty(mass.shape if want_bias else 0)
    slots, _, key_width, _, shares = args.sizes
    sums = q.new_empty((len(q), shares, slots, key_width) if want_q else (0,))
    bias_sums, grad_bias = q.new_empty(len(q), shares, slots), q.new_empty(mass.shape)
    slot_attention_backward_kernel[(len(q) * shares,)](
        grad_updates.contiguous(), updates.contiguous(), mass.contiguous(), *args[:5],
        grad_k, grad_v, sums, bias_sums,
        *args.sizes, WANT_Q=want_q, WANT_K=want_k, WANT_V=want_v and v is not None, **args.options,
    )  # fmt: skip
    if want_q or want_bias:
        _add_shares(args, sums, bias_sums, grad_q, grad_bias, normalise=False)
    return grad_q, grad_k, grad_v, grad_bias if want_bias else q.new_empty(0)


def _add_shares(
    args: _Arguments, sums: Tensor, masses: Tensor, out: Tensor, mass: Tensor, *, normalise: bool
) -> None:
    slots, shares, width = args.sizes[0], args.sizes[-1], out.shape[-1]
    add_shares_kernel[(mass.numel(),)](
        sums, masses, args.slot_mask, out, mass, slots, width, shares,
        HAS_MASK=args.has_mask, NORMALISE=normalise, BLOCK_S=16,
        BLOCK=max(16, triton.next_power_of_2(width)),
    )  # fmt: skip
