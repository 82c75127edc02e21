"""The image encoder and its decoders in plain PyTorch: what the rewritten ones must equal.

Legend: B batch, K slots, M = B * K, N pixels, C channels, D slot width, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def encode(encoder: Any, images: Tensor) -> Tensor:
    """Pixel features [B, N, C] of images [B, 3, H, W] in [0, 1]."""
    x = 2 * images - 1
    for convolution in encoder.convolutions:
        x = convolution(x).relu()
    x = x + position_map(encoder.position.project, *x.shape[-2:])
    x = encoder.norm(x.flatten(2).transpose(1, 2))
    return encoder.output(encoder.hidden(x).relu())


def decode(decoder: Any, slots: Tensor, size: Sequence[int]) -> Tensor:
    """Colours before their activation and mask logits, [M, 4, H, W], of slots [M, D]."""
    layers = [*decoder.convolutions, decoder.output]
    if isinstance(layers[0], nn.ConvTranspose2d):
        height, width = size[0] // 16, size[1] // 16
        activation: Callable[[Tensor], Tensor] = F.relu
    else:
        margin = sum(layer.kernel_size[0] - 1 - 2 * layer.padding[0] for layer in layers)
        height, width = size[0] + margin, size[1] + margin
        activation = {"elu": F.elu, "relu": F.relu}[decoder.spec.activation]  # type: ignore[assignment]
    x = slots[:, :, None, None] + position_map(decoder.position.project, height, width)
    for layer in layers[:-1]:
        x = activation(layer(x))
    return layers[-1](x)


def position_map(project: nn.Linear, height: int, width: int) -> Tensor:
    """Distances to the bottom, top, left and right edge, projected to [C, H, W]."""
    down, up = torch.linspace(0, 1, height), torch.linspace(1, 0, height)
    right, left = torch.linspace(0, 1, width), torch.linspace(1, 0, width)
    from_bottom, from_left = torch.meshgrid(up, right, indexing="ij")
    from_top, from_right = torch.meshgrid(down, left, indexing="ij")
    ramps = torch.stack([from_bottom, from_top, from_left, from_right], dim=-1)
    return project(ramps.to(project.weight)).permute(2, 0, 1)
