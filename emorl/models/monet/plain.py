"""MONet's objective in one page of plain PyTorch: the oracle of its tests.

The formulas of Burgess et al. (2019), one slot after the other: every broadcast latent image is
made, instance norms are means and variances written out, and masks are products of probabilities.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from emorl.nn import plain


def objective(
    model: Any, images: Tensor, num_slots: int, kl_weight: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and terms [B] of `model.objective`, with its noise from the global generator."""
    c, batch = model.config, len(images)
    noise = torch.randn(batch * num_slots, c.slot_dim, dtype=images.dtype)
    noise = noise.view(batch, num_slots, c.slot_dim)
    prior = Independent(Normal(torch.zeros(c.slot_dim).to(images), 1.0), 1)
    attended = masks(model, images, num_slots)
    likelihood, kl, logits = torch.zeros(()), torch.zeros(()), []
    for k, mask in enumerate(attended):
        posterior = _encode(model, images, mask)
        kl = kl + kl_divergence(posterior, prior)
        slot = posterior.mean + posterior.stddev * noise[:, k]
        decoded = plain.decode(model.component.decoder, slot, images.shape[-2:])
        rgb, logit = decoded[:, :3], decoded[:, 3:]
        means = torch.sigmoid(rgb) if c.rgb_activation == "sigmoid" else rgb
        logits.append(logit)
        sigma = c.sigma_background if k == 0 else c.sigma_foreground
        density = Normal(means, sigma).log_prob(images).exp() * math.sqrt(2 * math.pi)
        if c.likelihood == "mixture_joint":
            density = density.prod(dim=1, keepdim=True)
        likelihood = likelihood + mask * density
    q, p = torch.stack(attended), torch.stack(logits).softmax(dim=0)
    terms = {
        "nll": -likelihood.log().sum(dim=(1, 2, 3)),  # -log sum_k m_k p(x | z_k)
        "kl": kl,  # KL(q(z | x, m) || p(z))
        "mask_kl": (q * (q / p).log()).sum(dim=(0, 2, 3, 4)),  # KL(q(c | x) || p(c | z))
    }
    loss = terms["nll"] + kl_weight * c.beta * terms["kl"] + c.gamma * terms["mask_kl"]
    return loss.mean(), terms


def masks(model: Any, images: Tensor, num_slots: int) -> list[Tensor]:
    """Masks m_k = s_k a_k, [B, 1, H, W] each; the scope that is left is s_k+1 = s_k (1 - a_k)."""
    scope, found = torch.ones_like(images[:, :1]), []
    for _ in range(num_slots - 1):
        probability = torch.sigmoid(_attention(model, torch.cat([images, scope.log()], dim=1)))
        found.append(scope * probability)
        scope = scope * (1 - probability)
    return [*found, scope]


def _attention(model: Any, x: Tensor) -> Tensor:
    """The U-Net: logits [B, 1, H, W] of images and scope [B, 4, H, W]."""
    net, skips = model.attention, []
    for block in net.down:
        skips.append(_block(block, x))
        x = skips[-1][:, :, ::2, ::2]
    x = skips[-1]
    for layer in (net.bottleneck[1], net.bottleneck[3], net.bottleneck[5]):
        x = torch.relu(layer(x.flatten(1)))
    x = x.view(skips[-1].shape)
    for level in reversed(range(len(skips))):
        x = _block(net.up[level], torch.cat([x, skips[level]], dim=1))
        if level > 0:
            height, width = skips[level - 1].shape[-2:]
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]
    return net.output(x)


def _block(block: Any, x: Tensor) -> Tensor:
    """Convolution, instance norm, ReLU."""
    x = F.conv2d(x, block.convolution.weight, padding=1)
    mean = x.mean(dim=(2, 3), keepdim=True)
    variance = (x - mean).square().mean(dim=(2, 3), keepdim=True)
    x = (x - mean) / torch.sqrt(variance + 1e-5)
    return torch.relu(x * block.norm.weight[:, None, None] + block.norm.bias[:, None, None])


def _encode(model: Any, images: Tensor, mask: Tensor) -> Independent:
    """The component VAE's posterior q(z_k | x, m_k)."""
    x = torch.cat([images, mask.log()], dim=1)
    for layer in model.component.convolutions:
        x = torch.relu(layer(x))
    return plain.gaussian(model.component.posterior(model.component.hidden(x.flatten(1)).relu()))
