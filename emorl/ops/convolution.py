"""Convolution with its bias and activation: on the CPU by Winograd's algorithm, on a GPU cuDNN's.

Shapes: B images, C and D channels, H W pixels, kernel k x k.
"""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.ops import library
from emorl.ops.arguments import (
    require_device,
    require_dtype,
    require_floating,
    require_tensors,
    whole_number,
)
from emorl.ops.library import Backend, cast, define_op, resolve
from emorl.ops.spatial_broadcast import (
    ACTIVATIONS,
    Activation,
    empty_images,
    is_channels_last,
)

# Where the CPU's native kernels win, in `_worth_on_cpu`. With 16 channels transforms take what the
# products save, and the activation's own pass is what is saved.
_LEAST_CHANNELS = {"none": 32, "relu": 16, "elu": 16}
_LEAST_PIXELS = 256  # of an output; with fewer the weights' transforms take longer than is saved
_MOST_FACTORS = 3 << 20  # bytes; more leave the second-level cache, and gradients have 8 to 16 such


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: int = 0,
    stride: int = 1,
    activation: Activation = "none",
    backend: Backend = "auto",
) -> Tensor:
    """Convolve images, add a bias and activate the result, in one operator.

        output = act(conv2d(x, weight, bias, stride, padding))

    On the CPU the native kernels are F(4x4, 3x3) of Winograd's minimal filtering, and F(4, 5)
    along rows, need a quarter and two fifths of the multiplications. Weight gradients are summed
    in an order that does not depend on the number of threads. They round more: here is the rms
    error against float64 over that of plain PyTorch, of normal numbers, with 24x24 pixels, one
    thread and AVX-512 (with two threads PyTorch's weight gradients round less: 3.7 and 4.0 for a
    batch of 16; `tests/ops/test_winograd_error.py`).

        channels                        32   64   128
        3x3: output, gradient of x      2.2  2.0  1.9
        5x5: output, gradient of x      1.2  1.1  1.0

        batch, with 64 channels         1    4    16
        3x3: gradient of the weight     5.3  3.9  2.7
        5x5: gradient of the weight     5.8  3.9  2.9

    Each tile of outputs shares its sums: a NaN, an infinity or a number near the largest spreads
    over pixels that do not see it.

    Where there are few pixels plain PyTorch may happen to round little: the worst of 6,824 drawn
    cases were 5.0 for outputs, 9.1 for x, 10.8 for weights and 7.7 for biases.

    On a GPU cuDNN convolves. Bias and activation follow in one kernel, in place; backward, the
    activation's derivative and the bias's gradient are one kernel, whose sums repeat bit by bit.
    Channels first or last: results have the order of `x` in memory. Under autocast tensors are
    converted as `conv2d` does. PyTorch's settings (TF32, determinism) hold for cuDNN.

    Equivalent to `reference`.

    Args:
        x: [B, C, H, W].
        weight: [D, C, k, k].
        bias: [D].
        padding: zeros around the image.
        stride: pixels from one output to the next.
        activation: `elu` (alpha = 1), `relu` or `none`.
        backend: `auto` takes `native` on a GPU, for every size and floating dtype; on the CPU for
            3x3 and 5x5 kernels of stride 1 in float32 or float64, outside autocast, where the
            channels are multiples of 16 (32 or more without an activation), an output has 256
            pixels or more, and the transformed weights 3 MiB at most (in float32 up to 128 and
            128 channels); else `reference`.

    Returns:
        [B, D, H + 2 padding - k + 1, W + 2 padding - k + 1], divided by the stride and rounded up;
        from the CPU's native kernels channels-last.

    Raises:
        ValueError: If the activation is unknown, shapes, dtypes or devices do not fit, there are
            no channels, padded images are smaller than the kernel, or the backend cannot run.

    Source: Winograd 1980; Lavin & Gray 2016, "Fast algorithms for convolutional neural networks".
    """
    if activation not in get_args(Activation):
        expected = ", ".join(get_args(Activation))
        raise ValueError(f"convolution: activation: expected one of {expected}, got {activation!r}")
    padding = whole_number("convolution", "padding", padding, least=0)
    stride = whole_number("convolution", "stride", stride, least=1)
    _check(x, weight, bias, padding)
    if not library.on_gpu(x):
        limit = _limit_on_cpu(x, weight, padding, stride)
        possible = backend == "auto" and limit is None
        if possible and not _worth_on_cpu(x, weight, padding, activation):
            backend = "reference"
    else:
        limit = None
    if resolve("convolution", backend, (x, weight, bias), {"native": limit}) == "reference":
        return reference(x, weight, bias, padding, activation, stride)
    x, weight = _as_autocast_wants(x), _as_autocast_wants(weight)
    bias = None if bias is None else _as_autocast_wants(bias)
    output: Tensor = torch.ops.emorl.convolution.default(
        x, weight, bias, padding, stride, activation
    )
    return output


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: int = 0,
    activation: str = "none",
    stride: int = 1,
) -> Tensor:
    """Plain PyTorch form of `convolution`."""
    total = F.conv2d(x, weight, bias, stride, padding)
    return ACTIVATIONS[activation](total, inplace=True) if activation != "none" else total


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> None:
    tensors = {"x": x, "weight": weight, "bias": bias}
    require_tensors("convolution", tensors, ("bias",))
    if not (x.dim() == weight.dim() == 4 and x.shape[1] == weight.shape[1]):
        raise ValueError(
            "convolution: expected x [B,C,H,W] and weight [D,C,k,k], "
            f"got {list(x.shape)} and {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"convolution: bias: expected {list(weight.shape[:1])}, got {list(bias.shape)}"
        )
    _check_sides(x, weight, padding)
    require_floating("convolution", tensors)
    require_device("convolution", tensors, x.device)
    if any(y is not None and y.dtype != x.dtype for y in (weight, bias)):
        wanted = {k: None if y is None else _as_autocast_wants(y) for k, y in tensors.items()}
        require_dtype("convolution", wanted, _as_autocast_wants(x).dtype)


def _check_sides(x: Tensor, weight: Tensor, padding: int) -> None:
    if 0 in weight.shape:
        raise ValueError(
            f"convolution: weight: expected channels and a kernel, got {list(weight.shape)}"
        )
    least = [max(1, side - 2 * padding) for side in weight.shape[2:]]
    if any(side < needed for side, needed in zip(x.shape[2:], least, strict=True)):
        sides = least[0] if least[0] == least[1] else f"{least[0]} and {least[1]}"
        raise ValueError(
            f"convolution: expected an image of at least {sides} pixels a side, got {list(x.shape)}"
        )


def _as_autocast_wants(x: Tensor) -> Tensor:
    """An argument in the dtype in which autocast, if it is on, has `conv2d` compute."""
    if x.dtype == torch.float64 or not library.autocasts(x):
        return x
    return cast(x, torch.get_autocast_dtype(x.device.type))


def _limit_on_cpu(x: Tensor, weight: Tensor, padding: int, stride: int) -> str | None:
    """Why the CPU's native kernels cannot run these arguments, if they cannot."""
    if x.dtype not in (torch.float32, torch.float64) or library.autocasts(x):
        return "float32 or float64 outside autocast is needed"
    channels, kernel = weight.shape[:2], weight.shape[2]
    if any(width % 16 for width in channels):
        return f"channels in multiples of 16 are needed, got {list(channels)}"
    if stride != 1:
        return f"a stride of 1 is needed, got {stride}"
    if kernel not in (3, 5) or weight.shape[3] != kernel or not 0 <= padding < kernel:
        return (
            "a 3x3 or 5x5 kernel and less padding are needed, "
            f"got {list(weight.shape[2:])} and padding {padding}"
        )
    return None


def _worth_on_cpu(x: Tensor, weight: Tensor, padding: int, activation: Activation) -> bool:
    """Whether the CPU's native kernels, which can run these arguments, take less time.

    Images count alone, so that the batch's size decides nothing about the numbers.
    """
    (out_channels, in_channels), kernel = weight.shape[:2], weight.shape[2]
    height, width = (side + 2 * padding - kernel + 1 for side in x.shape[2:])
    factors = {3: 36, 5: 40}[kernel] * out_channels * in_channels  # as in csrc/cpu
    return (
        min(out_channels, in_channels) >= _LEAST_CHANNELS[activation]
        and height * width >= _LEAST_PIXELS
        and factors * weight.element_size() <= _MOST_FACTORS
    )


def _channels_last(x: Tensor) -> bool:
    """The order of the native results in memory."""
    return is_channels_last(x) if library.on_gpu(x) else True


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, stride: int, activation: str
) -> Tensor:
    height, width = (
        (side + 2 * padding - kernel) // stride + 1
        for side, kernel in zip(x.shape[2:], weight.shape[2:], strict=True)
    )
    return empty_images(x, (len(x), len(weight), height, width), _channels_last(x))


def _fake_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    output: Tensor,
    padding: int,
    stride: int,
    activation: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    nothing = x.new_empty(0)
    last = _channels_last(x)
    if library.on_gpu(x):
        weights = empty_images(x, tuple(weight.shape), last)
    else:
        weights = x.new_empty(*weight.shape[2:], *weight.shape[1::-1]).permute(3, 2, 0, 1)
    return (
        empty_images(x, tuple(x.shape), last) if wanted[0] else nothing,
        weights if wanted[1] else nothing,
        x.new_empty(len(weight)) if wanted[2] else nothing,
    )


define_op(
    "convolution",
    schema="(Tensor x, Tensor weight, Tensor? bias, int padding, int stride, str activation) -> "
    "(Tensor output)",
    schema_backward="(Tensor grad_output, Tensor x, Tensor weight, Tensor output, int padding, "
    "int stride, str activation, bool[3] wanted) -> "
    "(Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    fake=_fake,
    fake_backward=_fake_backward,
    triton=False,
)
