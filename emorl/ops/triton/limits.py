"""What fits on a GPU: the sizes that the Triton kernels take, and the layout of their tiles.

Imports no Triton: `auto` asks here before it chooses a backend.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from emorl.ops import library

MAX_SLOTS, MAX_WIDTH = 64, 256

_PIXELS = (64, 32, 16)  # of a tile, best first
_PRODUCTS = 64 * 16 * 256  # of one tl.dot; those in float32 are unrolled and take long to compile


class Layout(NamedTuple):
    """How slot attention's kernels cut their work."""

    pixels: int  # of a tile
    stages: int  # 3: tiles are fetched ahead, 1: they are not
    warps: int
    shared: int  # bytes of shared memory, at most


def slot_attention(slots: int, width: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why slot attention's kernels cannot run these sizes on a device, None if they can.

    Args:
        slots: K.
        width: Of keys or values, whichever is wider.
        dtype: What the kernels compute in, float32 or float64.
        device: Where the tensors are.
    """
    available = library.shared_memory(device)
    if slot_attention_layout(slots, width, dtype, available) is not None:
        return None
    if slots > MAX_SLOTS or width > MAX_WIDTH:
        return (
            f"at most {MAX_SLOTS} slots and width {MAX_WIDTH} in Triton, "
            f"got {slots} slots, width {width}"
        )
    needed = _shared_memory_needed(padded(slots), padded(width), _PIXELS[-1], 1, dtype)
    return (
        f"{slots} slots of width {width} in {dtype} need {needed} bytes of shared memory in "
        f"Triton, this GPU has {available}"
    )


def padded(size: int) -> int:
    """The next power of two, at least 16 as tl.dot wants; torch.compile can trace it."""
    power = 16
    while power < size:
        power *= 2
    return power


def slot_attention_layout(
    slots: int, width: int, dtype: torch.dtype, available: int
) -> Layout | None:
    """The layout with the most pixels a tile, fetched ahead if that fits; None if none fits.

    Args:
        slots: K.
        width: Of keys or values, whichever is wider.
        dtype: What the kernels compute in, float32 or float64.
        available: Bytes of shared memory that a program can have.
    """
    if slots > MAX_SLOTS or width > MAX_WIDTH:
        return None
    slots, width = padded(slots), padded(width)
    warps = 8 if slots * width >= 4096 else 4
    for pixels in _PIXELS:
        if slots * pixels * width > _PRODUCTS:
            continue
        for stages in (3, 1):
            needed = _shared_memory_needed(slots, width, pixels, stages, dtype)
            if needed <= available:
                return Layout(pixels, stages, warps, needed)
    return None


def _shared_memory_needed(
    slots: int, width: int, pixels: int, stages: int, dtype: torch.dtype
) -> int:
    """Bytes that Triton takes for the backward pass, which takes more than the forward pass.

    Measured, not promised: `make test-aot` compares. Two arrays [slots, width]; tiles of k and v,
    twice if they are fetched ahead, and in float32 one for both if not; and room to change the
    layout of a tile, or of an array [slots, pixels] between two products. In float64 Triton 3.6
    keeps the arrays [slots, width] in two layouts, and sums over rows.
    """
    is_double = dtype == torch.float64
    kept = 4 * slots * width + 2 * slots if is_double else 2 * slots * width
    tiles = 4 if stages > 1 else 2 if is_double else 1
    return (kept + tiles * pixels * width + pixels * max(slots, width)) * dtype.itemsize
