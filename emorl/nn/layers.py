"""Layers as they are called here: fused where they are plain, by their own call where they are not.

Legend: B batch, C and D channels, H W image.
"""

from __future__ import annotations

from typing import Literal, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as every

from emorl.ops import Backend
from emorl.ops.convolution import convolution
from emorl.ops.library import mapped
from emorl.ops.spatial_broadcast import ACTIVATIONS

Layer = TypeVar("Layer", bound=nn.Module)
Activation = Literal["elu", "relu"]


def is_plain(layer: nn.Module, kind: type[Layer]) -> TypeGuard[Layer]:
    """Whether a layer is one of `kind` whose call computes with its weights and nothing else.

    A layer that is not (an adapter, a quantised one, one with hooks) must be called: what replaces
    the call by the weights' mathematics would leave out what it adds.
    """
    hooks = (
        *(layer._forward_hooks, layer._forward_pre_hooks),
        *(layer._backward_hooks, layer._backward_pre_hooks),
        *(every._global_forward_hooks, every._global_forward_pre_hooks),
        *(every._global_backward_hooks, every._global_backward_pre_hooks),
    )
    own = torch.nn.utils.parametrize.type_before_parametrizations(layer)
    return own is kind and "forward" not in vars(layer) and not any(hooks)


def channels_last(images: Tensor) -> Tensor:
    """Images [B, C, H, W], in memory [B, H, W, C]; also where `torch.vmap` maps them."""
    if mapped():  # which knows no memory formats
        return images.movedim(1, -1).contiguous().movedim(-1, 1)
    return images.contiguous(memory_format=torch.channels_last)


def convolve(
    layer: nn.Module,
    x: Tensor,
    activation: Activation | Literal["none"],
    backend: Backend,
    padding: int = 0,
) -> Tensor:
    """What a convolution gives, activated; by the operator where that has all its options.

    Args:
        layer: the convolution; or a transposed one, which with a stride of 1 is that of its
            weights with the channels exchanged and both sides reversed.
        x: [B, C, H, W].
        activation: "elu", "relu" or "none".
        backend: of the operator.
        padding: zeros around the images, beside those of the layer.

    Returns:
        [B, D, H', W'].
    """
    if is_plain(layer, nn.Conv2d) and is_square(layer):
        weight, own = layer.weight, int(layer.padding[0])
    elif is_plain(layer, nn.ConvTranspose2d) and _turns(layer):
        weight = layer.weight.flip(2, 3).transpose(0, 1)
        own = layer.kernel_size[0] - 1 - int(layer.padding[0])
    else:
        called = layer(F.pad(x, 4 * (padding,)) if padding else x)
        return called if activation == "none" else ACTIVATIONS[activation](called)
    return convolution(
        x,
        weight,
        layer.bias,
        padding=own + padding,
        stride=layer.stride[0],
        activation=activation,
        backend=backend,
    )


def rectified(layer: nn.Module, x: Tensor, kind: type[nn.Module]) -> Tensor:
    """ReLU of what a layer gives; in place where it is a plain one of `kind`.

    What another one gives may be kept: by a hook, or as the output of a layer within it.
    """
    return F.relu(layer(x), inplace=is_plain(layer, kind))


def _turns(layer: nn.ConvTranspose2d) -> bool:
    """Whether a transposed convolution is a convolution with its weights turned round."""
    height, width = layer.kernel_size
    return (
        is_square(layer)
        and height == width > int(layer.padding[0])
        and (layer.stride, layer.output_padding) == ((1, 1), (0, 0))
    )


def is_square(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether padding and stride are numbers for both sides, and nothing else is unusual."""
    return (
        not isinstance(layer.padding, str)
        and len({*layer.padding}) == len({*layer.stride}) == 1
        and (layer.padding_mode, layer.groups, layer.dilation) == ("zeros", 1, (1, 1))
    )
