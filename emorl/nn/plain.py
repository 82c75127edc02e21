"""What the models' plain objectives share, in plain PyTorch: encoder, decoders, Gaussians, loss.

Legend: B batch, K slots, M = B * K, N pixels, C channels, D slot width, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal


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
    x = slots[:, :, None, None].expand(-1, -1, height, width)
    if hasattr(decoder.position, "project"):
        x = x + position_map(decoder.position.project, height, width)
    else:
        x = torch.cat([x, coordinates(height, width).to(x).expand(len(x), -1, -1, -1)], dim=1)
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


def coordinates(height: int, width: int) -> Tensor:
    """Each pixel's x and y, from -1 to 1, [2, H, W]."""
    sides = (torch.linspace(-1, 1, side) for side in (height, width))
    y, x = torch.meshgrid(*sides, indexing="ij")
    return torch.stack([x, y])


def gaussian(parameters: Tensor, least_variance: float = 1e-5) -> Independent:
    """Gaussian of parameters [M, 2D], means and raw variances, which softplus makes positive."""
    mean, raw = parameters.chunk(2, dim=1)
    variance = torch.log(1 + torch.exp(raw.clamp(max=80))) + least_variance
    return Independent(Normal(mean, torch.sqrt(variance)), 1)


def loss(nll: Tensor, kl: Tensor, geco: Any, kl_weight: float, dims: int) -> Tensor:
    """Negative evidence lower bound, or GECO's Lagrangian (Emami et al. 2021, appendix F.2).

    Args:
        nll: mean over the images, in nats.
        kl: likewise.
        geco: an `emorl.models.geco.GECO`, or None.
        kl_weight: of the KL; 0 switches GECO off.
        dims: pixels times channels of an image.
    """
    if geco is None or kl_weight == 0:
        return nll + kl_weight * kl
    slack = geco.target_per_dim * dims - nll
    multiplier = math.log(1 + math.exp(geco.raw_multiplier))
    return kl_weight * kl - multiplier * (slack + (geco.moving_average - slack).detach())
