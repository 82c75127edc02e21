"""Triton kernels of spatial broadcast: one program takes a tile of the image and some slots.

A tile's pixels are of one border class, so that a tile adds one vector per slot, and the gradient
of a slot is a sum over whole tiles. A second kernel adds the tiles in a fixed order, so results
repeat bit by bit.

Legend: M slots, P pixels of a tile, C channels, T tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _extent(line_class, size, BORDER: tl.constexpr):
    """First row (or column) of a border class and how many there are."""
    first, count = 0, size
    if BORDER:
        first = tl.where(line_class == 0, 0, tl.where(line_class == 1, 1, size - 1))
        count = tl.where(line_class == 1, size - 2, 1)
    return first, count


@triton.jit
def _tiles_of_class(of_class, height, width, BORDER: tl.constexpr, BLOCK_P: tl.constexpr):
    _, rows = _extent(of_class // 3, height, BORDER)
    _, columns = _extent(of_class % 3, width, BORDER)
    return tl.cdiv(rows * columns, BLOCK_P)


@triton.jit
def _class_of_tile(tile, height, width, BORDER: tl.constexpr, BLOCK_P: tl.constexpr):
    """A tile's border class and its number among the tiles of this class."""
    of_class, number = tile * 0, tile
    if BORDER:
        first = 0
        for candidate in tl.static_range(9):
            inside = tile >= first
            of_class = tl.where(inside, candidate, of_class)
            number = tl.where(inside, tile - first, number)
            first += _tiles_of_class(candidate, height, width, BORDER, BLOCK_P)
    return of_class, number


@triton.jit
def _place(
    tile, channel_block, channels, height, width,
    BORDER: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile's class, its channels, [C], their offsets in an image, [P, C], and which exist."""
    of_class, number = _class_of_tile(tile, height, width, BORDER, BLOCK_P)
    first_row, rows = _extent(of_class // 3, height, BORDER)
    first_column, columns = _extent(of_class % 3, width, BORDER)
    index = number * BLOCK_P + tl.arange(0, BLOCK_P)
    pixel = (first_row + index // columns) * width + first_column + index % columns
    pixel = pixel.to(tl.int64)
    c = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    if CHANNELS_LAST:
        offsets = pixel[:, None] * channels + c[None, :]
    else:
        offsets = pixel[:, None] + c[None, :].to(tl.int64) * (height * width)
    return of_class, c, offsets, (index < rows * columns)[:, None] & (c < channels)[None, :]


@triton.jit
def _expm1(x, TERMS: tl.constexpr):
    """exp(x) - 1 for x <= 0, with all its digits near 0 as well.

    From -1 on it is the power series x + x^2 / 2 (1 + x/3 (1 + x/4 (...))). With u the unit
    roundoff, the bracket is wrong by at most 3 u (each step rounds four times and passes on at most
    a third of what came before), its product with x^2 / 2 by 5 u, and as that is at most 0.58 of
    the sum, this by 4 u. Below -1 the difference passes on at most 0.58 of exp's error. (Triton's
    interpreter has no expm1.)
    """
    series = x * 0 + 1
    for i in tl.static_range(TERMS - 2):
        series = 1 + x * (1 / (TERMS - i)) * series
    return tl.where(x > -1, x + x * x * 0.5 * series, tl.exp(x) - 1)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "elu":
        # the first term left out is below u / 8 of the sum
        x = tl.where(x > 0, x, _expm1(x, 18 if x.dtype == tl.float64 else 11))
    if ACTIVATION == "relu":
        x = tl.where(x <= 0, 0.0, x)
    return x


@triton.jit
def _activate_backward(grad, y, ACTIVATION: tl.constexpr):
    """The gradient of the sum, given y = act(sum)."""
    if ACTIVATION == "elu":
        grad = grad * tl.where(y > 0, 1.0, y + 1)
    if ACTIVATION == "relu":
        grad = tl.where(y <= 0, 0.0, grad)
    return grad


@triton.jit
def spatial_broadcast_kernel(
    slot_ptr, position_ptr, output_ptr, slots, channels, height, width,
    ACTIVATION: tl.constexpr, BORDER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A share of output [M, image] = act(slot [M, classes, C] + position [image])."""
    blocks = tl.cdiv(channels, BLOCK_C)
    of_class, c, offsets, exists = _place(
        tl.program_id(0) // blocks, tl.program_id(0) % blocks, channels, height, width,
        BORDER, CHANNELS_LAST, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    classes: tl.constexpr = 9 if BORDER else 1
    size = tl.cast(channels * height, tl.int64) * width
    position = tl.load(position_ptr + offsets, exists, 0.0).to(WIDE)
    share, shares = tl.program_id(1), tl.num_programs(1)
    for m in range(share * slots // shares, (share + 1) * slots // shares):
        row = (m * classes + of_class).to(tl.int64)
        slot = tl.load(slot_ptr + row * channels + c, c < channels, 0.0).to(WIDE)
        value = _activate(position + slot[None, :], ACTIVATION)
        value = value.to(output_ptr.dtype.element_ty)
        tl.store(output_ptr + tl.cast(m, tl.int64) * size + offsets, value, exists)


@triton.jit
def spatial_broadcast_backward_kernel(
    grad_ptr, output_ptr, tile_sums_ptr, position_sums_ptr, slots, channels, height, width,
    ACTIVATION: tl.constexpr, BORDER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A share of the slots: sums over the tile, [T, M, C], and over slots, [shares, image]."""
    blocks = tl.cdiv(channels, BLOCK_C)
    tile = tl.program_id(0) // blocks
    _, c, offsets, exists = _place(
        tile, tl.program_id(0) % blocks, channels, height, width,
        BORDER, CHANNELS_LAST, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    size = tl.cast(channels * height, tl.int64) * width
    sums = tl.zeros([BLOCK_P, BLOCK_C], WIDE)
    share, shares = tl.program_id(1), tl.num_programs(1)
    for m in range(share * slots // shares, (share + 1) * slots // shares):
        here = tl.cast(m, tl.int64) * size + offsets
        grad = tl.load(grad_ptr + here, exists, 0.0).to(WIDE)
        y = tl.load(output_ptr + here, exists, 0.0).to(WIDE)
        grad = _activate_backward(grad, y, ACTIVATION)
        sums += grad
        row = tile.to(tl.int64) * slots + m
        tl.store(tile_sums_ptr + row * channels + c, tl.sum(grad, axis=0), c < channels)
    tl.store(position_sums_ptr + share.to(tl.int64) * size + offsets, sums, exists)


@triton.jit
def add_tiles_kernel(
    tile_sums_ptr, grad_slot_ptr, slots, channels, height, width,
    BORDER: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add the sums [T, M, C] of each border class: grad_slot [M, classes, C]."""
    classes: tl.constexpr = 9 if BORDER else 1
    m, of_class = tl.program_id(0) // classes, tl.program_id(0) % classes
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = 0
    if BORDER:
        for candidate in tl.static_range(9):
            tiles = _tiles_of_class(candidate, height, width, BORDER, BLOCK_P)
            first += tl.where(candidate < of_class, tiles, 0)
    last = first + _tiles_of_class(of_class, height, width, BORDER, BLOCK_P)
    sums = tl.zeros([BLOCK_C], WIDE)
    for begin in range(first, last, BLOCK_T):
        tile = begin + tl.arange(0, BLOCK_T)
        rows = tile.to(tl.int64) * slots + m
        inside = (tile < last)[:, None] & (c < channels)[None, :]
        values = tl.load(tile_sums_ptr + rows[:, None] * channels + c[None, :], inside, 0.0)
        sums += tl.sum(values, axis=0)
    sums = sums.to(grad_slot_ptr.dtype.element_ty)
    row = tl.program_id(0).to(tl.int64)
    tl.store(grad_slot_ptr + row * channels + c, sums, c < channels)
