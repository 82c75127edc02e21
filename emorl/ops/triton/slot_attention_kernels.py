"""Triton kernels of slot attention: one program takes a share of an image's pixels, tile by tile.

A second kernel adds the programs' partial sums in a fixed order, so results repeat bit by bit.

All numbers have one dtype, the mask's 0 and 1 as well: Triton 3.6 cannot compile a product of
float64 matrices where one of them depends on narrower numbers.

Legend: B batch, K slots, N pixels, D width of keys, E width of values, S shares of the pixels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_rows(pointer, rows, columns, row_count, width):
    """Rows of a contiguous [row_count, width] array; zeros outside it."""
    inside = (rows[:, None] < row_count) & (columns[None, :] < width)
    return tl.load(pointer + rows[:, None].to(tl.int64) * width + columns[None, :], inside, 0.0)


@triton.jit
def _store_rows(pointer, values, rows, columns, row_count, width):
    inside = (rows[:, None] < row_count) & (columns[None, :] < width)
    tl.store(pointer + rows[:, None].to(tl.int64) * width + columns[None, :], values, inside)


@triton.jit
def _taking_part(mask_ptr, rows, slot, slots, HAS_MASK: tl.constexpr):
    takes_part = slot < slots
    if HAS_MASK:
        takes_part = tl.load(mask_ptr + rows, takes_part, 0.0) != 0
    return takes_part


@triton.jit
def _attend(q, k, bias, is_slot, takes_part, LOWEST: tl.constexpr):
    """Softmax over slots of q k^T + bias, [K, N]; zero for slots that take no part.

    Those have the lowest finite logit, as in the reference; rows that pad the slots have none. The
    bias comes last: the compiler would begin a plain sum of products with what is added to it.
    """
    products = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=q.dtype)
    bias = tl.where(takes_part, bias, LOWEST)
    logits = tl.where(takes_part[:, None], products, 0.0) + bias[:, None]
    logits = tl.where(is_slot[:, None], logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, axis=0)[None, :])
    attention = weights / tl.sum(weights, axis=0)[None, :]
    return tl.where(takes_part[:, None], attention, 0.0)


@triton.jit
def slot_attention_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, mask_ptr, sums_ptr, masses_ptr, attention_ptr,
    slots, pixels, key_width, value_width, shares,
    EPS: tl.constexpr, LOWEST: tl.constexpr, SHARED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr, WANT_ATTENTION: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One share's sums of (attention + eps) v, [B, S, K, E], and of attention + eps, [B, S, K]."""
    share = tl.program_id(0) % shares
    image = (tl.program_id(0) // shares).to(tl.int64)
    slot, d, e = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    rows = image * slots + slot
    takes_part = _taking_part(mask_ptr, rows, slot, slots, HAS_MASK)
    q = _load_rows(q_ptr + image * slots * key_width, slot, d, slots, key_width)
    bias = tl.zeros([BLOCK_K], q.dtype)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + rows, slot < slots, 0.0)
    sums, masses = tl.zeros([BLOCK_K, BLOCK_E], q.dtype), tl.zeros([BLOCK_K], q.dtype)
    tiles = tl.cdiv(pixels, BLOCK_N)
    for tile in range(share * tiles // shares, (share + 1) * tiles // shares):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        k = _load_rows(k_ptr + image * pixels * key_width, n, d, pixels, key_width)
        attention = _attend(q, k, bias, slot < slots, takes_part, LOWEST)
        if WANT_ATTENTION:
            target = attention_ptr + image * slots * pixels
            _store_rows(target, attention, slot, n, slots, pixels)
        counts = takes_part[:, None] & (n < pixels)[None, :]
        weights = tl.where(counts, attention + EPS, 0.0)
        masses += tl.sum(weights, axis=1)
        if SHARED:
            v = k
        else:
            v = _load_rows(v_ptr + image * pixels * value_width, n, e, pixels, value_width)
        sums = tl.dot(weights, v, sums, input_precision="ieee", out_dtype=q.dtype)
    program = tl.program_id(0).to(tl.int64)
    _store_rows(sums_ptr + program * slots * value_width, sums, slot, e, slots, value_width)
    tl.store(masses_ptr + program * slots + slot, masses, slot < slots)


@triton.jit
def slot_attention_backward_kernel(
    grad_ptr, updates_ptr, mass_ptr, q_ptr, k_ptr, v_ptr, bias_ptr, mask_ptr,
    grad_k_ptr, grad_v_ptr, sums_ptr, bias_sums_ptr,
    slots, pixels, key_width, value_width, shares,
    EPS: tl.constexpr, LOWEST: tl.constexpr, SHARED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr, WANT_Q: tl.constexpr, WANT_K: tl.constexpr, WANT_V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v, and one share's sums for those of q, [B, S, K, D], and bias, [B, S, K].

    With g = grad_updates / mass, a weight's gradient is g . v - g . updates.
    """
    share = tl.program_id(0) % shares
    image = (tl.program_id(0) // shares).to(tl.int64)
    slot, d, e = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    rows = image * slots + slot
    takes_part = _taking_part(mask_ptr, rows, slot, slots, HAS_MASK)
    q = _load_rows(q_ptr + image * slots * key_width, slot, d, slots, key_width)
    bias = tl.zeros([BLOCK_K], q.dtype)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + rows, slot < slots, 0.0)
    mass = tl.load(mass_ptr + rows, takes_part, 1.0)
    g = _load_rows(grad_ptr + image * slots * value_width, slot, e, slots, value_width)
    g = tl.where(takes_part[:, None], g / mass[:, None], 0.0)
    updates = _load_rows(updates_ptr + image * slots * value_width, slot, e, slots, value_width)
    offset = tl.sum(g * updates, axis=1)
    sums, bias_sums = tl.zeros([BLOCK_K, BLOCK_D], q.dtype), tl.zeros([BLOCK_K], q.dtype)
    tiles = tl.cdiv(pixels, BLOCK_N)
    for tile in range(share * tiles // shares, (share + 1) * tiles // shares):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        k = _load_rows(k_ptr + image * pixels * key_width, n, d, pixels, key_width)
        attention = _attend(q, k, bias, slot < slots, takes_part, LOWEST)
        if SHARED:
            v = k
        else:
            v = _load_rows(v_ptr + image * pixels * value_width, n, e, pixels, value_width)
        grad_weights = tl.dot(g, tl.trans(v), input_precision="ieee", out_dtype=q.dtype)
        grad_weights -= offset[:, None]
        mean = tl.sum(attention * grad_weights, axis=0)
        grad_logits = attention * (grad_weights - mean[None, :])
        counts = takes_part[:, None] & (n < pixels)[None, :]
        grad_logits = tl.where(counts, grad_logits, 0.0)
        bias_sums += tl.sum(grad_logits, axis=1)
        if WANT_Q:
            sums = tl.dot(grad_logits, k, sums, input_precision="ieee", out_dtype=q.dtype)
        if WANT_K:
            grad_k = tl.dot(tl.trans(grad_logits), q, input_precision="ieee", out_dtype=q.dtype)
            if SHARED:
                weights = tl.trans(attention + EPS)
                grad_k = tl.dot(weights, g, grad_k, input_precision="ieee", out_dtype=q.dtype)
            target = grad_k_ptr + image * pixels * key_width
            _store_rows(target, grad_k, n, d, pixels, key_width)
        if WANT_V:
            weights = tl.trans(attention + EPS)
            grad_v = tl.dot(weights, g, input_precision="ieee", out_dtype=q.dtype)
            target = grad_v_ptr + image * pixels * value_width
            _store_rows(target, grad_v, n, e, pixels, value_width)
    program = tl.program_id(0).to(tl.int64)
    if WANT_Q:
        _store_rows(sums_ptr + program * slots * key_width, sums, slot, d, slots, key_width)
    tl.store(bias_sums_ptr + program * slots + slot, bias_sums, slot < slots)


@triton.jit
def add_shares_kernel(
    sums_ptr, masses_ptr, mask_ptr, out_ptr, mass_ptr, slots, width, shares,
    HAS_MASK: tl.constexpr, NORMALISE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the sums [B, S, K, width] and masses [B, S, K] over S; NORMALISE divides one by other."""
    row = tl.program_id(0).to(tl.int64)
    image, slot, column = row // slots, row % slots, tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], out_ptr.dtype.element_ty)
    mass = tl.zeros([BLOCK_S], out_ptr.dtype.element_ty)
    for first in range(0, shares, BLOCK_S):
        share = first + tl.arange(0, BLOCK_S)
        rows = (image * shares + share) * slots + slot
        inside = (share < shares)[:, None] & (column < width)[None, :]
        values = tl.load(sums_ptr + rows[:, None] * width + column[None, :], inside, 0.0)
        total += tl.sum(values, axis=0)
        mass += tl.load(masses_ptr + rows, share < shares, 0.0)
    sum_of_mass = tl.sum(mass, axis=0)
    if NORMALISE:
        total = total / sum_of_mass
    if HAS_MASK:
        takes_part = tl.load(mask_ptr + row) != 0
        total = tl.where(takes_part, total, 0.0)
    tl.store(out_ptr + row * width + column, total, column < width)
    tl.store(mass_ptr + row, sum_of_mass)
