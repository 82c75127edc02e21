"""Spatial broadcast: what each slot adds to a map of positions, and the activation of the sum.

Shapes: M slots of a batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.ops.arguments import require_device, require_floating, require_tensors
from emorl.ops.library import Backend, cast, define_op, resolve

Activation = Literal["elu", "relu", "none"]

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"elu": F.elu, "relu": F.relu}


def spatial_broadcast(
    slot: Tensor,
    position: Tensor,
    *,
    activation: Activation = "elu",
    backend: Backend = "auto",
) -> Tensor:
    """Add each slot to every pixel of a map that all slots share, and activate the sum.

        output[m, c, h, w] = act(slot[m, c] + position[c, h, w])

    This is a decoder's first convolution over a slot's broadcast copy plus positions, since the
    convolution of a sum is the sum of the convolutions: `position` is the positions' convolution
    with the bias, `slot` that of a constant image. Without padding that is one vector per slot;
    with zeros one pixel wide around the image it takes one of 3 x 3 values, `slot[m, c, i, j]`, by
    border class: i is 0 in the first row, 2 in the last and 1 between them, j likewise for columns.

    Equivalent to `reference`. Sums are accumulated in float32 or wider. The gradient reads the
    output and its gradient once; on the CPU it is deterministic for a fixed number of threads, on
    a GPU always.

    Args:
        slot: [M, C], or [M, C, 3, 3] by border class.
        position: [C, H, W]; H and W are at least 2 if the slots come by border class.
        activation: `elu` (alpha = 1), `relu` or `none`.
        backend: `auto`, `native`, `triton` or `reference`; `emorl.ops.backends()` tells which can
            run.

    Returns:
        [M, C, H, W] in the common dtype of both arguments; channels-last if `position` is, that
        is if its channels are adjacent in memory, else contiguous.

    Raises:
        ValueError: If shapes, dtypes, devices or the activation do not fit, or the backend cannot
            run.

    Source: Watters et al. 2019, "Spatial Broadcast Decoder"; the decoders of Emami et al. 2021,
    appendix F.
    """
    _check(slot, position, activation)
    dtype = torch.promote_types(slot.dtype, position.dtype)
    slot, position = cast(slot, dtype), cast(position, dtype)
    chosen = resolve("spatial_broadcast", backend, (position, slot))
    if chosen == "reference":
        return reference(slot, position, activation)
    ops = torch.ops.emorl
    op = ops.spatial_broadcast_triton if chosen == "triton" else ops.spatial_broadcast
    output: Tensor = op.default(slot, position, activation)
    return output


def reference(slot: Tensor, position: Tensor, activation: str = "elu") -> Tensor:
    """Plain PyTorch form of `spatial_broadcast`."""
    height, width = position.shape[1:]
    slot = slot[..., None, None] if slot.dim() == 2 else _spread(slot, height, width)
    total = slot + position
    if is_channels_last(position):  # not by memory_format, which torch.vmap does not know
        total = total.movedim(-3, -1).contiguous().movedim(-1, -3)
    else:
        total = total.contiguous()
    return ACTIVATIONS[activation](total) if activation != "none" else total


def is_channels_last(image: Tensor) -> bool:
    """Whether an image [..., C, H, W] has its channels, but not its pixels, adjacent in memory."""
    return image.shape[-3] > 1 and image.stride(-3) == 1 and not image.is_contiguous()


def empty_images(like: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    """An uninitialised tensor [..., C, H, W], in memory [..., H, W, C] if `channels_last`."""
    if not channels_last:
        return like.new_empty(shape)
    *outer, channels, height, width = shape
    return like.new_empty(*outer, height, width, channels).movedim(-1, -3)


def _spread(classes: Tensor, height: int, width: int) -> Tensor:
    """Repeat the middle of [M, C, 3, 3] until it is [M, C, height, width]."""
    left, middle, right = classes.split(1, dim=3)
    rows = torch.cat([left, middle.expand(-1, -1, -1, width - 2), right], dim=3)
    top, middle, bottom = rows.split(1, dim=2)
    return torch.cat([top, middle.expand(-1, -1, height - 2, -1), bottom], dim=2)


def _check(slot: Tensor, position: Tensor, activation: str) -> None:
    tensors = {"slot": slot, "position": position}
    require_tensors("spatial_broadcast", tensors)
    by_class = slot.dim() == 4 and slot.shape[2:] == (3, 3)
    if not (
        (slot.dim() == 2 or by_class) and position.dim() == 3 and slot.shape[1] == position.shape[0]
    ):
        raise ValueError(
            "spatial_broadcast: expected slot [M,C] or [M,C,3,3] and position [C,H,W], "
            f"got {list(slot.shape)} and {list(position.shape)}"
        )
    if by_class and min(position.shape[1:]) < 2:
        raise ValueError(
            "spatial_broadcast: position: expected height and width of at least 2 with slot "
            f"[M,C,3,3], got {list(position.shape)}"
        )
    require_floating("spatial_broadcast", tensors)
    require_device("spatial_broadcast", tensors, position.device)
    if activation not in get_args(Activation):
        expected = ", ".join(get_args(Activation))
        raise ValueError(
            f"spatial_broadcast: activation: expected one of {expected}, got {activation!r}"
        )


def _fake(slot: Tensor, position: Tensor, activation: str) -> Tensor:
    return empty_images(position, (slot.shape[0], *position.shape), is_channels_last(position))


def _fake_backward(
    grad_output: Tensor, output: Tensor, slot: Tensor, activation: str, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    shapes = (tuple(slot.shape), tuple(output.shape[1:]))
    channels_last = (slot.dim() == 4, is_channels_last(output))
    grad_slot, grad_position = (
        empty_images(output, shape, last) if want else output.new_empty(0)
        for shape, last, want in zip(shapes, channels_last, wanted, strict=True)
    )
    return grad_slot, grad_position


define_op(
    "spatial_broadcast",
    schema="(Tensor slot, Tensor position, str activation) -> (Tensor output)",
    schema_backward="(Tensor grad_output, Tensor output, Tensor slot, str activation, "
    "bool[2] wanted) -> (Tensor grad_slot, Tensor grad_position)",
    fake=_fake,
    fake_backward=_fake_backward,
)
