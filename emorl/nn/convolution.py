"""Convolution layers by the fused operator."""

from __future__ import annotations

from torch import Tensor, nn

from emorl.ops import Backend, convolution
from emorl.ops.spatial_broadcast import Activation


def convolve(layer: nn.Module, x: Tensor, activation: Activation, backend: Backend) -> Tensor:
    """What an `nn.Conv2d` with equal padding and stride on both sides gives, activated.

    Args:
        layer: the convolution.
        x: [B, C, H, W].
        activation: "elu", "relu" or "none".
        backend: of the operator.

    Returns:
        [B, D, H', W'].
    """
    assert isinstance(layer, nn.Conv2d)
    padding = layer.padding[0]
    assert isinstance(padding, int)
    return convolution(
        x,
        layer.weight,
        layer.bias,
        padding=padding,
        stride=layer.stride[0],
        activation=activation,
        backend=backend,
    )
