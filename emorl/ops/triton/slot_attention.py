"""Launchers of slot attention's Triton kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

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
    blocks = _blocks(slots, key_width, value_width, q.element_size())
    shares = min(triton.cdiv(pixels, blocks["BLOCK_N"]), triton.cdiv(_programs(q), batch or 1))
    options = {
        "EPS": eps,
        "SHARED": v is None,
        "HAS_BIAS": logit_bias is not None,
        "HAS_MASK": slot_mask is not None,
        **blocks,
    }
    bias = q if logit_bias is None else logit_bias.contiguous()
    mask = q if slot_mask is None else slot_mask.contiguous().view(torch.uint8)
    sizes = (slots, pixels, key_width, value_width, max(1, shares))
    return _Arguments(q, k, values, bias, mask, options, sizes)


def _blocks(slots: int, key_width: int, value_width: int, item_size: int) -> dict[str, int]:
    """Powers of two, at least 16 as tl.dot wants; a tile of k or v takes at most 32 KiB."""
    block_d, block_e = (max(16, triton.next_power_of_2(x)) for x in (key_width, value_width))
    pixels = 32768 // (item_size * max(block_d, block_e))
    return {
        "BLOCK_K": max(16, triton.next_power_of_2(slots)),
        "BLOCK_N": max(16, min(64, pixels)),
        "BLOCK_D": block_d,
        "BLOCK_E": block_e,
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


def _ahead_of_time(
    dtype: str, slots: int, width: int, shared: bool
) -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Both kernels for slots and widths of this size, as the test that compiles them wants them."""
    blocks = _blocks(slots, width, width, 8 if dtype == "fp64" else 4)
    constants = {"EPS": 1e-8, "SHARED": shared, "HAS_BIAS": True, "HAS_MASK": True, **blocks}
    backward = {"WANT_Q": True, "WANT_K": True, "WANT_V": not shared}
    result = []
    for kernel, extra in (
        (slot_attention_kernel, {"WANT_ATTENTION": True}),
        (slot_attention_backward_kernel, backward),
    ):
        pointers = {name: f"*{dtype}" for name in kernel.arg_names if name.endswith("_ptr")}
        sizes = dict.fromkeys(("slots", "pixels", "key_width", "value_width", "shares"), "i32")
        signature = {**pointers, "mask_ptr": "*u8", **sizes}
        result.append((kernel, signature, {**constants, **extra}))
    return result


_ADD_SHARES = (
    add_shares_kernel,
    {
        **dict.fromkeys(("sums_ptr", "masses_ptr", "out_ptr", "mass_ptr"), "*fp32"),
        "mask_ptr": "*u8",
        **dict.fromkeys(("slots", "width", "shares"), "i32"),
    },
    {"HAS_MASK": True, "NORMALISE": True, "BLOCK_S": 16, "BLOCK": 64},
)

# What tests compile without a GPU: kernel, signature, constants; the models' sizes.
AOT = [
    *_ahead_of_time("fp32", 7, 64, shared=False),
    *_ahead_of_time("fp32", 7, 64, shared=True),
    _ADD_SHARES,
]
