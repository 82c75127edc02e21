"""IODINE's objective in one page of plain PyTorch: the oracle of its tests.

Algorithm 1 of Greff et al. (ICML 2019) in its two published forms. Nothing is rewritten or fused:
every slot's broadcast latent image is made, the refinement network's inputs follow their formulas
slot by slot, and one backward pass goes through all steps.

Legend: B batch, K slots, M = B * K, D slot width; lambda [M, 2D] means and raw variances.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from emorl.models.geco import GECO
from emorl.nn import plain


def objective(
    model: Any, images: Tensor, geco: GECO | None = None, kl_weight: float = 1.0
) -> Tensor:
    """The loss of `model.objective`, with noise from the global generator in the same order."""
    c, batch, steps = model.config, len(images), model.config.refinement_steps
    least, variance = (1e-5, 1.0) if c.prior == "unit" else (0.0, math.log(2))
    prior = Independent(Normal(torch.zeros(c.slot_dim).to(images), variance**0.5), 1)
    parameters, state, losses = model.initial.expand(batch * c.num_slots, -1), None, []  # lambda
    for step in range(steps + 1):
        posterior = plain.gaussian(parameters, least)
        means, logits = _decode(model, posterior.rsample(), images)
        log_masks, densities = logits.log_softmax(1), _log_densities(c, images, means)
        nll = -_log_mixture(log_masks, densities).sum() / batch
        kl = kl_divergence(posterior, prior).sum() / batch
        losses.append(plain.loss(nll, kl, geco, kl_weight, images[0].numel()))
        if step < steps:
            inputs = (means, log_masks if c.inputs == "authors" else logits, parameters)
            gradients = torch.autograd.grad(losses[-1], inputs, retain_graph=True)
            x, vectors = _inputs(model, images, means, logits, densities, gradients)
            update, state = _refinement(model, x, torch.cat([parameters, *vectors], 1), state)
            parameters = parameters + update
    weights = [(step + 1) / (steps + 1) for step in range(steps + 1)]
    if c.step_weights == "linspace":
        weights = [*(step / steps for step in range(steps)), 1.0]
    return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum()


def _decode(model: Any, slots: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Means [B, K, 3, H, W] and mask logits [B, K, 1, H, W] of slots [M, D]."""
    if model.config.decoder_constant is not None:
        slots = F.pad(slots, (0, 1), value=model.config.decoder_constant)
    decoded = plain.decode(model.decoder, slots, images.shape[2:]).unflatten(0, (len(images), -1))
    means, logits = decoded[:, :, :3], decoded[:, :, 3:]
    return means.sigmoid() if model.config.rgb_activation == "sigmoid" else means, logits


def _log_densities(c: Any, images: Tensor, means: Tensor) -> Tensor:
    """Log p(x | z_k) of each channel, [B, K, 3, H, W], or of all jointly, [B, K, 1, H, W]."""
    if c.likelihood == "logistic":
        u = (images[:, None] - means) / c.sigma
        each = torch.log(torch.exp(-u) / (c.sigma * (1 + torch.exp(-u)).square()))
    else:
        each = Normal(means, c.sigma).log_prob(images[:, None])
    if c.likelihood == "mixture":  # each channel alone, and as released without this constant
        return each + 0.5 * math.log(2 * math.pi)
    return each.sum(2, keepdim=True)


def _log_mixture(log_masks: Tensor, densities: Tensor) -> Tensor:
    """Log sum_k m_k p(x | z_k) of each pixel, [B, 1, 1, H, W]."""
    return (log_masks + densities).logsumexp(1, keepdim=True).sum(2, keepdim=True)


def _inputs(
    model: Any, images: Tensor, means: Tensor, logits: Tensor, densities: Tensor, gradients: Any
) -> tuple[Tensor, list[Tensor]]:
    """Images [M, C, H, W] for the refinement network, and vectors [M, ...] to put beside lambda."""
    net, (d_means, d_masks, d_lambda), slots = model.inputs, gradients, range(means.shape[1])
    log_masks, joint = logits.log_softmax(1), densities.sum(2, keepdim=True)
    grid = plain.coordinates(*images.shape[2:]).to(images)
    if model.config.inputs == "authors":
        pixel = (log_masks + densities).logsumexp((1, 2), keepdim=True)
        own = [means, log_masks, logits, joint.log_softmax(1), _norm(d_means), _norm(d_masks)]
        shared = [images[:, None], _norm(pixel), grid]
        vectors = [F.layer_norm(half, half.shape[1:]) for half in d_lambda.chunk(2, dim=1)]
    else:
        pixel = _log_mixture(log_masks, densities)
        others = [[j for j in slots if j != k] for k in slots]
        without = [_log_mixture(logits[:, o].log_softmax(1), densities[:, o]) for o in others]
        gain = _norm(pixel - torch.cat(without, dim=1), net.norm_added)
        ratio = joint.exp() / (joint.exp().sum(1, keepdim=True) + 1e-6)
        d_means, d_masks = _norm(d_means, net.norm_means), _norm(d_masks, net.norm_masks)
        own = [means, logits, log_masks.exp(), ratio, d_means, d_masks, gain]
        if model.config.coordinates == "cosine":
            x, y = math.pi * (grid + 1) / 2
            waves = [(i * x).cos() * (j * y).cos() for i in range(3) for j in range(3)]
            grid = torch.stack(waves[1:])
        shared = [images[:, None], _norm(pixel, net.norm_pixel), torch.full_like(pixel, 0.5), grid]
        vectors = [net.norm_posterior(d_lambda), torch.full_like(d_lambda[:, :1], 0.5)]
    shared = [x.expand(*means.shape[:2], -1, -1, -1) for x in shared]
    return torch.cat([*own, *shared], dim=2).flatten(0, 1), vectors


def _norm(x: Tensor, layer: Any = None) -> Tensor:
    """Layer norm over channels and pixels; no gradient goes through what is normalised."""
    x = F.layer_norm(x.detach(), x.shape[2:])
    return x if layer is None else layer.weight * x + layer.bias


def _refinement(model: Any, x: Tensor, vectors: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The update of lambda, [M, 2D], and the LSTM's next state."""
    net, stride = model.refinement, model.config.encoder_stride
    for convolution in net.convolutions:  # padded as TensorFlow's "SAME"
        padding = []
        for side, kernel in zip(x.shape[:1:-1], convolution.kernel_size, strict=True):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        x = F.elu(F.conv2d(F.pad(x, padding), convolution.weight, convolution.bias, stride))
    code = x.mean((2, 3)) if model.config.pooling == "mean" else F.avg_pool2d(x, 4).flatten(1)
    for n, layer in enumerate(net.code):
        code = layer(F.elu(code) if n else code)
    hidden = torch.cat([code if net.merge is None else F.elu(code), vectors], dim=1)
    if net.merge is not None:
        hidden = F.elu(net.merge(hidden))
    if net.cell is not None:
        hidden, _ = state = net.cell(hidden, state)
    return torch.cat([net.mean(hidden), net.raw(hidden)], dim=1), state
