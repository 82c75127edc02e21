"""Slot attention: a softmax over slots, then each slot's weighted mean over the pixels.

Shapes: B batch, K slots, N pixels, D width of queries and keys, E width of values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, overload

import torch
from torch import Tensor

from emorl.ops._library import Backend, define_op, resolve


@overload
def slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    eps: float = ...,
    logit_bias: Tensor | None = ...,
    slot_mask: Tensor | None = ...,
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
    return_attention: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Let slots compete for pixels and average the values of the pixels that each slot wins.

        attention[k, n] = softmax over k of (q[k] . k[n] + logit_bias[k])
        updates[k] = sum_n (attention[k, n] + eps) v[n] / sum_n (attention[k, n] + eps)

    Equivalent to `reference`, whose [B, K, N] temporaries the native backend never makes. Sums are
    accumulated in float32 or wider; bfloat16 and float16 arguments are converted to float32. Where
    one tensor serves as `k` and `v`, pass it twice: it is then read once. On the CPU the result is
    deterministic for a fixed number of threads.

    Args:
        q: [B, K, D] queries, already scaled (usually by D ** -0.5).
        k: [B, N, D] keys.
        v: [B, N, E] values.
        eps: Added to each attention weight.
        logit_bias: [B, K], added to each slot's logits.
        slot_mask: [B, K], bool, True where the slot takes part. Others get attention and update 0.
        return_attention: Return the attention, too.
        backend: `auto`, `native` or `reference`; `emorl.ops.backends()` tells which can run.

    Returns:
        updates [B, K, E] in the common dtype of q, k and v (NaN without pixels, N = 0); with
        `return_attention` also attention [B, K, N], each pixel's sum over slots being 1. It is the
        softmax before eps is added, and is not differentiable.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit, or the backend cannot run.

    Source: Locatello et al. 2020, "Object-Centric Learning with Slot Attention", Algorithm 1.
    """
    _check(q, k, v, logit_bias, slot_mask)
    dtype = reduce(torch.promote_types, (k.dtype, v.dtype), q.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    k_wide = k.to(wide)
    bias = None if logit_bias is None else logit_bias.to(wide)
    if resolve("slot_attention", backend, q) == "reference":
        updates, attention = reference(q.to(wide), k_wide, v.to(wide), bias, slot_mask, eps)
        attention = attention.detach()
    else:
        v_wide = None if v is k else v.to(wide)
        op = torch.ops.emorl.slot_attention.default
        updates, _, attention = op(
            q.to(wide), k_wide, v_wide, bias, slot_mask, eps, return_attention
        )
    return (updates.to(dtype), attention.to(dtype)) if return_attention else updates.to(dtype)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit_bias: Tensor | None = None,
    slot_mask: Tensor | None = None,
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch form of `slot_attention`: updates [B, K, E] and attention [B, K, N]."""
    with torch.autocast(q.device.type, enabled=False):
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
    if not (
        q.dim() == k.dim() == v.dim() == 3
        and q.shape[0] == k.shape[0] == v.shape[0]
        and q.shape[2] == k.shape[2]
        and k.shape[1] == v.shape[1]
    ):
        got = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"slot_attention: expected q [B,K,D], k [B,N,D], v [B,N,E], got {got}")
    for name, tensor in {"q": q, "k": k, "v": v, "logit_bias": logit_bias}.items():
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"slot_attention: {name}: expected floating point, got {tensor.dtype}")
    if slot_mask is not None and slot_mask.dtype != torch.bool:
        raise ValueError(f"slot_attention: slot_mask: expected torch.bool, got {slot_mask.dtype}")
    for name, tensor in {"logit_bias": logit_bias, "slot_mask": slot_mask}.items():
        if tensor is not None and tensor.shape != q.shape[:2]:
            raise ValueError(
                f"slot_attention: {name}: expected {list(q.shape[:2])}, got {list(tensor.shape)}"
            )
    for name, tensor in {"k": k, "v": v, "logit_bias": logit_bias, "slot_mask": slot_mask}.items():
        if tensor is not None and tensor.device != q.device:
            raise ValueError(f"slot_attention: {name}: expected {q.device}, got {tensor.device}")


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
    shapes = (q.shape, k.shape, (0,) if v is None else v.shape, q.shape[:2])
    return tuple(
        q.new_empty(shape if want else 0) for shape, want in zip(shapes, wanted, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, logit_bias, slot_mask, ctx.eps, _ = inputs
    updates, mass, attention = output
    ctx.mark_non_differentiable(mass, attention)
    ctx.save_for_backward(q, k, v, logit_bias, slot_mask, updates, mass)


def _backward(
    backward_op: Callable[..., tuple[Tensor, ...]], ctx: Any, grad_updates: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:4])
    grads = backward_op(grad_updates, *ctx.saved_tensors, ctx.eps, wanted)
    return (
        *(grad if want else None for grad, want in zip(grads, wanted, strict=True)),
        None,
        None,
        None,
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
    setup_context=_setup_context,
    backward=_backward,
)
