"""Slot attention: a softmax over slots, then each slot's weighted mean over the pixels.

Shapes: B batch, K slots, N pixels, H heads, D width of a head's queries and keys, E of its values.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal, get_args, overload

import torch
from torch import Tensor

from emorl.ops import library
from emorl.ops.arguments import (
    number,
    require_device,
    require_flag,
    require_floating,
    require_tensors,
    whole_number,
)
from emorl.ops.library import NARROW, Backend, cast, define_op, derivative_obstacle, resolve
from emorl.ops.slot_attention_heads import (
    SingleHead,
    heads_as_images,
    heads_as_slots,
    images_as_heads,
    slots_as_heads,
)
from emorl.ops.triton import limits

SoftmaxOver = Literal["slots", "slots_heads"]
MOST_SLOTS, WIDEST = 64, 256  # of the kernels on a GPU


@overload
def slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    eps: float = ...,
    logit_bias: Tensor | None = ...,
    slot_mask: Tensor | None = ...,
    heads: int = ...,
    softmax_over: SoftmaxOver = ...,
    return_attention: Literal[False] = ...,
    backend: Backend = ...,
) -> Tensor: ...
@overload
def slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    eps: float = ...,
    logit_bias: Tensor | None = ...,
    slot_mask: Tensor | None = ...,
    heads: int = ...,
    softmax_over: SoftmaxOver = ...,
    return_attention: Literal[True],
    backend: Backend = ...,
) -> tuple[Tensor, Tensor]: ...
def slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    eps: float = 1e-8,
    logit_bias: Tensor | None = None,
    slot_mask: Tensor | None = None,
    heads: int = 1,
    softmax_over: SoftmaxOver = "slots",
    return_attention: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Let slots compete for pixels and average the values of the pixels that each slot wins.

        attention[k, n] = softmax over k of (q[k] . k[n] + logit_bias[k])
        updates[k] = sum_n (attention[k, n] + eps) v[n] / sum_n (attention[k, n] + eps)

    Equivalent to `reference`, whose [B, K, N] temporaries the other backends never make. Sums are
    accumulated in float32 or wider; bfloat16 and float16 arguments are converted to float32. On a
    GPU the native kernels convert `k` and `v` as they read them, if both are of one narrow dtype
    and nothing is float64, and round their gradients once, as they write them; elsewhere there are
    float32 copies in memory. Where one tensor serves as `k` and `v`, pass it twice: it is then read
    once. The result repeats bit by bit, on the CPU with any number of threads, on a GPU for one
    kind of GPU. On a GPU the kernels take up to 64 slots and widths up to 256 (float64: less;
    Triton: less where a GPU has less shared memory than an A100); beyond, `auto` takes the
    reference.

    With several heads, head h sees the h-th part of the last dimension of q, k and v. Each head
    computes the above alone, or (`softmax_over="slots_heads"`) with one softmax over all slots
    and heads of a pixel.

    Args:
        q: [B, K, H*D] queries, already scaled (usually by D ** -0.5).
        k: [B, N, H*D] keys.
        v: [B, N, H*E] values.
        eps: Added to each attention weight.
        logit_bias: [B, K], added to each slot's logits.
        slot_mask: [B, K], bool, True where the slot takes part. Others get attention and update 0.
        heads: H.
        softmax_over: `slots` or `slots_heads`.
        return_attention: Return the attention, too.
        backend: `auto`, `native`, `triton` or `reference`; `emorl.ops.backends()` tells which can
            run.

    Returns:
        updates [B, K, H*E] in the common dtype of q, k and v (NaN without pixels, N = 0); with
        `return_attention` also attention, [B, K, N] or, with several heads, [B, K, H, N], each
        pixel's sum over what the softmax runs over being 1. It is the softmax before eps is added,
        and is not differentiable.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit, or the backend cannot run.

    Source: Locatello et al. 2020, "Object-Centric Learning with Slot Attention", Algorithm 1.
    """
    _check(q, k, v, logit_bias, slot_mask)
    eps, heads = number("slot_attention", "eps", eps), _checked_heads(q, v, heads, softmax_over)
    require_flag("slot_attention", "return_attention", return_attention)
    batch, slots, pixels = q.shape[0], q.shape[1], k.shape[1]
    if logit_bias is not None:  # here, since the gradients of heads are added in its dtype
        logit_bias = cast(logit_bias, torch.promote_types(_common_dtype(q, k, v), torch.float32))
    arguments = SingleHead(q, k, v, logit_bias, slot_mask)
    joint = softmax_over == "slots_heads"
    if heads > 1:
        arguments = (heads_as_slots if joint else heads_as_images)(arguments, heads)
    updates, attention = _single_head(arguments, eps, return_attention, backend)
    if heads > 1:
        updates = (slots_as_heads if joint else images_as_heads)(updates, heads)
    if not return_attention:
        return updates
    if heads > 1 and joint:
        attention = attention.reshape(batch, slots, heads, pixels)
    elif heads > 1:
        attention = attention.reshape(batch, heads, slots, pixels).transpose(1, 2)
    return updates, attention


def _single_head(
    arguments: SingleHead, eps: float, return_attention: bool, backend: str
) -> tuple[Tensor, Tensor]:
    q, k, v, bias, slot_mask = arguments
    dtype = _common_dtype(q, k, v)
    wide = torch.promote_types(dtype, torch.float32)
    chosen = resolve("slot_attention", backend, arguments, _limits(q, v, wide, backend))
    if chosen == "reference":
        q, k, v = cast(q, wide), cast(k, wide), cast(v, wide)
        updates, attention = reference(q, k, v, bias, slot_mask, eps)
        if derivative_obstacle(arguments) is None:  # else plain PyTorch differentiates it as well
            attention = attention.detach()
        return cast(updates, dtype), cast(attention, dtype)
    stored = k.dtype if _read_as_stored(q, k, v, chosen) else wide
    values = None if v is k else cast(v, stored)
    ops = torch.ops.emorl
    op = (ops.slot_attention_triton if chosen == "triton" else ops.slot_attention).default
    updates, _, attention = op(
        cast(q, wide), cast(k, stored), values, bias, slot_mask, eps, return_attention
    )
    return cast(updates, dtype), cast(attention, dtype)


def _read_as_stored(q: Tensor, k: Tensor, v: Tensor, backend: str) -> bool:
    """Whether the kernels convert k and v, which are narrow, as they read them."""
    on_gpu = backend == "native" and library.on_gpu(q)
    return on_gpu and k.dtype == v.dtype and k.dtype in NARROW and q.dtype != torch.float64


def _common_dtype(q: Tensor, k: Tensor, v: Tensor) -> torch.dtype:
    return reduce(torch.promote_types, (k.dtype, v.dtype), q.dtype)


def _limits(q: Tensor, v: Tensor, dtype: torch.dtype, backend: str) -> dict[str, str | None]:
    """Why the GPU's kernels, which keep all slots on the chip, cannot run these sizes."""
    if not library.on_gpu(q) and backend != "triton":  # the CPU's kernels take all sizes
        return {"triton": None, "native": None}
    slots, width = q.shape[1], max(q.shape[2], v.shape[2])
    on_chip = 4 * MOST_SLOTS * WIDEST // dtype.itemsize  # values: the most of both in float32
    native = None
    if slots > MOST_SLOTS or width > WIDEST:
        most = f"{MOST_SLOTS} slots and width {WIDEST}"
        native = f"at most {most} on a GPU, got {slots} slots, width {width}"
    elif limits.padded(slots) * limits.padded(width) > on_chip:
        native = f"{slots} slots of width {width} in {dtype} are more than {on_chip} values"
    elif library.on_gpu(q):
        needed = _shared_memory_needed(slots, q.shape[2], v.shape[2]) * dtype.itemsize
        available = library.shared_memory(q.device)
        if needed > available:
            native = (
                f"{slots} slots of width {width} in {dtype} need {needed} bytes of shared memory, "
                f"this GPU has {available}"
            )
    triton = None
    if backend == "triton" or (backend == "auto" and library.on_gpu(q)):  # the search takes 8 us
        triton = limits.slot_attention(slots, width, dtype, q.device)
    return {"triton": triton, "native": native if library.on_gpu(q) else None}


def _shared_memory_needed(slots: int, key_width: int, value_width: int) -> int:
    """Values that a block of the backward pass keeps with the smallest tile, of 4 pixels.

    As `Memory` (csrc/cuda/slot_attention_tile.cuh) counts them for keys and values of their own.
    """
    rows = 8 if slots <= 8 else limits.padded(slots)
    pitches = sum((width + 7) // 8 * 8 + 4 for width in (key_width, value_width))
    return (rows + 4) * pitches + rows * (2 + 2 * 4)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit_bias: Tensor | None = None,
    slot_mask: Tensor | None = None,
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch form of `slot_attention`: updates [B, K, E] and attention [B, K, N]."""
    with library.full_precision(q):
        logits = q @ k.mT
        if logit_bias is not None:
            logits = logits + logit_bias[..., None]
        if slot_mask is None:
            attention = logits.softmax(dim=1)
            weights = attention + eps
            return weights @ v / weights.sum(dim=2, keepdim=True), attention
        out = ~slot_mask[..., None]
        attention = logits.masked_fill(out, torch.finfo(logits.dtype).min).softmax(dim=1)
        attention = attention.masked_fill(out, 0)
        weights = (attention + eps).masked_fill(out, 0)
        mass = weights.sum(dim=2, keepdim=True).masked_fill(out, 1)
        return weights @ v / mass, attention


def _check(
    q: Tensor, k: Tensor, v: Tensor, logit_bias: Tensor | None, slot_mask: Tensor | None
) -> None:
    floating = {"q": q, "k": k, "v": v, "logit_bias": logit_bias}
    tensors = {**floating, "slot_mask": slot_mask}
    require_tensors("slot_attention", tensors, ("logit_bias", "slot_mask"))
    if not (
        q.dim() == k.dim() == v.dim() == 3
        and q.shape[0] == k.shape[0] == v.shape[0]
        and q.shape[2] == k.shape[2]
        and k.shape[1] == v.shape[1]
    ):
        got = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"slot_attention: expected q [B,K,D], k [B,N,D], v [B,N,E], got {got}")
    require_floating("slot_attention", floating)
    if slot_mask is not None and slot_mask.dtype != torch.bool:
        raise ValueError(f"slot_attention: slot_mask: expected torch.bool, got {slot_mask.dtype}")
    for name, tensor in {"logit_bias": logit_bias, "slot_mask": slot_mask}.items():
        if tensor is not None and tensor.shape != q.shape[:2]:
            raise ValueError(
                f"slot_attention: {name}: expected {list(q.shape[:2])}, got {list(tensor.shape)}"
            )
    require_device("slot_attention", tensors, q.device)


def _checked_heads(q: Tensor, v: Tensor, heads: int, softmax_over: str) -> int:
    heads = whole_number("slot_attention", "heads", heads, least=0)
    if heads == 0 or q.shape[2] % heads or v.shape[2] % heads:
        raise ValueError(
            f"slot_attention: heads: expected a common divisor of the widths {q.shape[2]} and "
            f"{v.shape[2]}, got {heads}"
        )
    if softmax_over not in get_args(SoftmaxOver):
        expected = " or ".join(get_args(SoftmaxOver))
        raise ValueError(f"slot_attention: softmax_over: expected {expected}, got {softmax_over!r}")
    return heads


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    logit_bias: Tensor | None,
    slot_mask: Tensor | None,
    eps: float,
    return_attention: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, slots, _), pixels = q.shape, k.shape[1]
    updates = q.new_empty(batch, slots, (k if v is None else v).shape[2])
    shape = (batch, slots, pixels) if return_attention else (0,)
    return updates, q.new_empty(batch, slots), q.new_empty(shape)


def _fake_backward(
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
) -> tuple[Tensor, ...]:
    values = k if v is None else v
    likes = (q, k, values, mass)
    sizes = (q.shape, k.shape, (0,) if v is None else v.shape, mass.shape)
    return tuple(
        like.new_empty(size if want else 0)
        for like, size, want in zip(likes, sizes, wanted, strict=True)
    )


_INPUTS = "Tensor q, Tensor k, Tensor? v, Tensor? logit_bias, Tensor? slot_mask"

define_op(
    "slot_attention",
    schema=f"({_INPUTS}, float eps, bool return_attention) -> "
    "(Tensor updates, Tensor mass, Tensor attention)",
    schema_backward=f"(Tensor grad_updates, {_INPUTS}, Tensor updates, Tensor mass, float eps, "
    "bool[4] wanted) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_logit_bias)",
    fake=_fake,
    fake_backward=_fake_backward,
)
