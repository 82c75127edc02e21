"""How far rounding may move the results of slot attention."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor


def cotangent(updates: Tensor) -> Tensor:
    """Weights that every dtype holds exactly; the sum they make is what the tests differentiate."""
    return (torch.arange(updates.numel()).view_as(updates) % 17 - 8).to(updates) / 8


def roundings(
    inputs: dict[str, Tensor],
    attention: Tensor,
    *,
    eps: float = 1e-8,
    slot_mask: Tensor | None = None,
    heads: int = 1,
    joint: bool = False,
) -> dict[str, float]:
    """For `assert_as_accurate_as_plain`: the formulas with absolute values instead of differences.

    A logit is a sum of terms |q k|, in all L. Rounding moves it by about L units, and therefore
    the exponential and the total that divides it, together 2 L of their own size. A sum of n
    numbers adds sqrt(n) units of the sum of their absolute values: n errors of random sign. Every
    result is thus off by at most (2 L + sqrt(n)) times the sum of its absolute terms.

    Args:
        inputs: q, k, logit_bias and, where it is not k, v, as the operator takes them.
        attention: [B, K, N] or [B, K, H, N], in float64.
        eps: As the operator's, and so are the others.
        slot_mask: [B, K].
        heads: H.
        joint: Whether the softmax is over slots and heads.
    """
    wide = {name: x.detach().double().abs() for name, x in inputs.items()}
    q, k, v = (
        x.unflatten(2, (heads, -1)) for x in (wide["q"], wide["k"], wide.get("v", wide["k"]))
    )
    bias = wide.get("logit_bias", q.new_zeros(q.shape[:2]))
    logits = torch.einsum("bkhd,bnhd->bkhn", q, k) + bias[:, :, None, None]
    a = attention.view_as(logits)
    part = torch.ones_like(bias) if slot_mask is None else slot_mask.double()
    weights = (a + eps) * part[:, :, None, None]
    mass = weights.sum(3, keepdim=True)
    share = weights / mass.where(mass > 0, 1)
    updates = torch.einsum("bkhn,bnhe->bkhe", share, v)
    grad = cotangent(updates.flatten(2)).view_as(updates).abs()
    g = grad / mass.where(mass > 0, 1)
    grad_weights = torch.einsum("bkhe,bnhe->bkhn", g, v) + (g * updates).sum(3, keepdim=True)
    mean = (a * grad_weights).sum((1, 2) if joint else 1, keepdim=True)
    grad_logits = a * (grad_weights + mean)
    grad_k = torch.einsum("bkhn,bkhd->bnhd", grad_logits, q)
    grad_v = torch.einsum("bkhn,bkhe->bnhe", weights, g)
    terms = {
        "updates": updates,
        "attention": a,
        "grad_q": torch.einsum("bkhn,bnhd->bkhd", grad_logits, k),
        "grad_k": grad_k if "v" in inputs else grad_k + grad_v,
        "grad_v": grad_v,
        "grad_logit_bias": grad_logits.sum((2, 3)),
    }
    longest = max(*logits.shape[1:], q.shape[3], v.shape[3])
    each = 2 * _largest(logits) + sqrt(longest)
    return {name: each * _largest(x) for name, x in terms.items()}


def _largest(x: Tensor) -> float:
    return x.max().item() if x.numel() else 0.0
