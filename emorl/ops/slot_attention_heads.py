"""Multi-head slot attention expressed by the single-head operator, exactly.

Legend: B batch, K slots, N pixels, H heads, D width of queries and keys, E width of values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SingleHead(NamedTuple):
    """Arguments of the single-head operator that stand for several heads."""

    q: Tensor
    k: Tensor
    v: Tensor
    logit_bias: Tensor | None
    slot_mask: Tensor | None


def heads_as_images(arguments: SingleHead, heads: int) -> SingleHead:
    """Each head competes alone: heads become images, [B, K, H*D] -> [B*H, K, D]."""
    q, k, v, logit_bias, slot_mask = arguments

    def fold(x: Tensor) -> Tensor:
        batch, rows, width = x.shape
        heads_first = x.reshape(batch, rows, heads, width // heads).transpose(1, 2)
        return heads_first.reshape(batch * heads, rows, width // heads)

    k_folded = fold(k)
    bias, mask = (
        None if x is None else x.repeat_interleave(heads, dim=0) for x in (logit_bias, slot_mask)
    )
    return SingleHead(fold(q), k_folded, k_folded if v is k else fold(v), bias, mask)


def images_as_heads(updates: Tensor, heads: int) -> Tensor:
    """[B*H, K, E] -> [B, K, H*E]."""
    folded, slots, width = updates.shape
    batch = folded // heads
    split = updates.reshape(batch, heads, slots, width).transpose(1, 2)
    return split.reshape(batch, slots, heads * width)


def heads_as_slots(arguments: SingleHead, heads: int) -> SingleHead:
    """All heads compete: heads become slots, [B, K, H*D] -> [B, K*H, H*D].

    A head's query is zero outside the head's own part of the key.
    """
    q, k, v, logit_bias, slot_mask = arguments
    batch, slots, width = q.shape
    by_head = q.reshape(batch, slots, heads, width // heads)
    blocks = torch.diag_embed(by_head.mT).movedim(2, -1)  # [B, K, H, H, D]
    bias, mask = (
        None if x is None else x.repeat_interleave(heads, dim=1) for x in (logit_bias, slot_mask)
    )
    return SingleHead(blocks.reshape(batch, slots * heads, width), k, v, bias, mask)


def slots_as_heads(updates: Tensor, heads: int) -> Tensor:
    """[B, K*H, H*E] -> [B, K, H*E]: each head keeps its own part of the values."""
    batch, rows, width = updates.shape
    blocks = updates.reshape(batch, rows // heads, heads, heads, width // heads)
    own = blocks.diagonal(dim1=2, dim2=3).mT  # [B, K, H, E]
    return own.reshape(batch, rows // heads, width)
