"""Launchers of spatial broadcast's Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from emorl.ops.spatial_broadcast import empty_images, is_channels_last
from emorl.ops.triton.spatial_broadcast_kernels import (
    add_tiles_kernel,
    spatial_broadcast_backward_kernel,
    spatial_broadcast_kernel,
)

_TILE = 2048  # elements


def forward(slot: Tensor, position: Tensor, activation: str) -> Tensor:
    """Launch the forward kernel; arguments and result as in the operator's schema."""
    channels_last, border_classes = is_channels_last(position), slot.dim() == 4
    output = empty_images(position, (len(slot), *position.shape), channels_last)
    if output.numel() == 0:
        return output
    options = _options(activation, border_classes, channels_last, len(position), position.dtype)
    spatial_broadcast_kernel[_grid(output, options)](
        _in_memory_order(slot, border_classes),
        _in_memory_order(position, channels_last),
        output,
        *output.shape,
        **options,
    )
    return output


def backward(
    grad_output: Tensor, output: Tensor, slot: Tensor, activation: str, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """Launch the backward kernels; arguments and results as in the operator's schema."""
    channels_last, border_classes = is_channels_last(output), slot.dim() == 4
    slots, channels, height, width = output.shape
    grad_slot = empty_images(output, tuple(slot.shape), border_classes)
    grad_position = empty_images(output, (channels, height, width), channels_last)
    if output.numel() == 0:
        grads = [grad_slot.zero_(), grad_position.zero_()]
    else:
        options = _options(activation, border_classes, channels_last, channels, output.dtype)
        grid = _grid(output, options)
        wide = torch.promote_types(output.dtype, torch.float32)
        tiles = _count_tiles(height, width, options)
        tile_sums = output.new_empty(tiles, slots, channels, dtype=wide)
        position_sums = output.new_empty(grid[1], grad_position.numel(), dtype=wide)
        spatial_broadcast_backward_kernel[grid](
            _in_memory_order(grad_output, channels_last),
            _in_memory_order(output, channels_last),
            tile_sums,
            position_sums,
            *output.shape,
            **options,
        )
        _add_tiles(tile_sums, grad_slot, output, options)
        in_memory_order = grad_position.movedim(0, -1) if channels_last else grad_position
        in_memory_order.copy_(position_sums.sum(0).view_as(in_memory_order))
        grads = [grad_slot, grad_position]
    chosen = (
        grad if want else output.new_empty(0) for grad, want in zip(grads, wanted, strict=True)
    )
    return tuple(chosen)  # type: ignore[return-value]


def _in_memory_order(images: Tensor, channels_last: bool) -> Tensor:
    return (images.movedim(-3, -1) if channels_last else images).contiguous()


def _options(
    activation: str, border_classes: bool, channels_last: bool, channels: int, dtype: torch.dtype
) -> dict[str, Any]:
    block_c = min(triton.next_power_of_2(channels), 64 if channels_last else 4)
    return {
        "ACTIVATION": activation,
        "BORDER": border_classes,
        "CHANNELS_LAST": channels_last,
        "WIDE": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK_P": _TILE // block_c,
        "BLOCK_C": block_c,
    }


def _count_tiles(height: int, width: int, options: dict[str, Any]) -> int:
    def lengths(size: int) -> tuple[int, ...]:
        return (1, size - 2, 1) if options["BORDER"] else (size,)

    counts = (rows * columns for rows in lengths(height) for columns in lengths(width))
    return sum(triton.cdiv(count, options["BLOCK_P"]) for count in counts)


def _grid(output: Tensor, options: dict[str, Any]) -> tuple[int, int]:
    """Tiles, and shares of the slots: programs to fill the GPU, a few for the interpreter."""
    slots, channels, height, width = output.shape
    tiles = _count_tiles(height, width, options) * triton.cdiv(channels, options["BLOCK_C"])
    programs = 4
    if output.is_cuda:
        programs = 8 * torch.cuda.get_device_properties(output.device).multi_processor_count
    return tiles, min(slots, triton.cdiv(programs, tiles))


def _add_tiles(
    tile_sums: Tensor, grad_slot: Tensor, output: Tensor, options: dict[str, Any]
) -> None:
    slots, channels, height, width = output.shape
    chosen = {name: options[name] for name in ("BORDER", "WIDE", "BLOCK_P")}
    rows = slots * (9 if options["BORDER"] else 1)
    add_tiles_kernel[(rows, triton.cdiv(channels, 64))](
        tile_sums, grad_slot, slots, channels, height, width, BLOCK_T=32, BLOCK_C=64, **chosen
    )
