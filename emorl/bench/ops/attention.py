"""Slot attention as PyTorch's fused attention can compute it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def slot_attention(
    q: Tensor, k: Tensor, v: Tensor, logit_bias: Tensor, eps: float = 1e-8
) -> Tensor:
    """Slot attention through `scaled_dot_product_attention`, with the roles exchanged.

    Slot attention's softmax is over slots. So the inputs are the queries here and the slots the
    keys; the values are the identity matrix, which makes the result the attention itself:

        attention[n] = softmax over k of (k[n] . q[k] + logit_bias[k]) . I

    It is then renormalised over the inputs, as the operator does it:

        updates[k] = sum_n (attention[n, k] + eps) v[n] / sum_n (attention[n, k] + eps)

    The values are K wide. PyTorch's fused kernel for the CPU wants them as wide as the keys, which
    takes more time than its unfused form (torch 2.13), so they are not padded.

    Args:
        q: [B, K, D] queries of the slots, already scaled.
        k: [B, N, D] keys of the inputs.
        v: [B, N, E] values of the inputs.
        logit_bias: [B, K], added to each slot's logits.
        eps: added to each attention weight.

    Returns:
        updates [B, K, E].
    """
    batch, slots = logit_bias.shape
    identity = torch.eye(slots, dtype=q.dtype, device=q.device).expand(batch, slots, slots)
    attention = F.scaled_dot_product_attention(  # of one head each, [B, 1, N, K]
        k[:, None],
        q[:, None],
        identity[:, None],
        attn_mask=logit_bias[:, None, None].expand(batch, 1, k.shape[1], slots),
        scale=1.0,
    )
    weights = attention[:, 0].mT + eps
    return weights @ v / weights.sum(dim=2, keepdim=True)
