"""MONet's objective in plain PyTorch: the oracle of its tests.

One slot after the other: every broadcast latent image is made and its coordinates concatenated,
instance norms are means and variances written out, masks are products of probabilities, and the
mixture and both divergences follow their formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence


def _block(block: Any, x: Tensor) -> Tensor:
    x = F.conv2d(x, block.convolution.weight, padding=1)
    mean = x.mean(dim=(2, 3), keepdim=True)
    variance = (x - mean).square().mean(dim=(2, 3), keepdim=True)
    x = (x - mean) / torch.sqrt(variance + 1e-5)
    return torch.relu(x * block.norm.weight[:, None, None] + block.norm.bias[:, None, None])


def _doubled(x: Tensor, like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]


def _attention(model: Any, x: Tensor) -> Tensor:
    net, skips = model.attention, []
    for block in net.down:
        skips.append(_block(block, x))
        x = skips[-1][:, :, ::2, ::2]
    x = skips[-1]
    for layer in (net.bottleneck[1], net.bottleneck[3], net.bottleneck[5]):
        x = torch.relu(x.flatten(1) @ layer.weight.T + layer.bias)
    x = x.view(skips[-1].shape)
    for level in reversed(range(len(skips))):
        x = _block(net.up[level], torch.cat([x, skips[level]], dim=1))
        if level > 0:
            x = _doubled(x, skips[level - 1])
    return F.conv2d(x, net.output.weight, net.output.bias)


def masks(model: Any, images: Tensor, num_slots: int) -> list[Tensor]:
    """The attention's masks, [B, 1, H, W] each, as probabilities."""
    scope, found = torch.ones_like(images[:, :1]), []
    for _ in range(num_slots - 1):
        probability = torch.sigmoid(_attention(model, torch.cat([images, scope.log()], dim=1)))
        found.append(scope * probability)
        scope = scope * (1 - probability)
    return [*found, scope]


def _encode(model: Any, image: Tensor, mask: Tensor) -> Normal:
    x = torch.cat([image, mask.log()], dim=1)
    for layer in model.component.convolutions:
        x = torch.relu(F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1))
    x = torch.relu(model.component.hidden(x.flatten(1)))
    mean, raw = model.component.posterior(x).chunk(2, dim=1)
    return Normal(mean, torch.sqrt(torch.log(1 + torch.exp(raw)) + 1e-5))


def _decode(model: Any, slot: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    height, width = size[0] + 8, size[1] + 8
    columns = torch.linspace(-1, 1, width).to(slot).expand(len(slot), 1, height, width)
    rows = torch.linspace(-1, 1, height).to(slot)[:, None].expand(len(slot), 1, height, width)
    x = torch.cat([slot[:, :, None, None].expand(-1, -1, height, width), columns, rows], dim=1)
    for layer in model.component.decoder.convolutions:
        x = torch.relu(F.conv2d(x, layer.weight, layer.bias))
    output = model.component.decoder.output
    x = F.conv2d(x, output.weight, output.bias)
    means = torch.sigmoid(x[:, :3]) if model.config.rgb_activation == "sigmoid" else x[:, :3]
    return means, x[:, 3:]


def objective(
    model: Any, images: Tensor, num_slots: int, kl_weight: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and terms [B] of `model.objective`, with its noise from the global generator."""
    c, batch = model.config, len(images)
    noise = torch.randn(batch * num_slots, c.slot_dim, dtype=images.dtype)
    noise = noise.view(batch, num_slots, c.slot_dim)
    found = masks(model, images, num_slots)
    likelihood, kl, logits = torch.zeros(()), torch.zeros(()), []
    for k, mask in enumerate(found):
        posterior = _encode(model, images, mask)
        kl = kl + kl_divergence(posterior, Normal(torch.zeros_like(posterior.mean), 1.0)).sum(1)
        slot = posterior.mean + posterior.stddev * noise[:, k]
        means, logit = _decode(model, slot, images.shape[-2:])
        logits.append(logit)
        sigma = c.sigma_background if k == 0 else c.sigma_foreground
        density = Normal(means, sigma).log_prob(images).exp() * math.sqrt(2 * math.pi)
        if c.likelihood == "mixture_joint":
            density = density.prod(dim=1, keepdim=True)
        likelihood = likelihood + mask * density
    decoded = torch.stack(logits).exp() / torch.stack(logits).exp().sum(0)
    attended = torch.stack(found)
    terms = {
        "nll": -likelihood.log().sum(dim=(1, 2, 3)),
        "kl": kl,
        "mask_kl": (attended * (attended / decoded).log()).sum(dim=(0, 2, 3, 4)),
    }
    loss = terms["nll"] + kl_weight * c.beta * terms["kl"] + c.gamma * terms["mask_kl"]
    return loss.mean(), terms
