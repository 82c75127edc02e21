"""IODINE's objective in plain PyTorch: the oracle of its tests.

No score-once, no second decoding, no fused likelihood, no split of the first convolution: every
slot's broadcast latent image is made, Gaussians and KL terms come from torch.distributions, what
the refinement network sees is written out slot by slot, its gradients come from autograd through
everything, and one backward pass goes through all iterations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from emorl.models.geco import GECO


def _posterior(model: Any, parameters: Tensor) -> Independent:
    mean, raw = parameters.chunk(2, dim=1)
    variance = torch.log(1 + torch.exp(raw)) + (1e-5 if model.config.prior == "unit" else 0)
    return Independent(Normal(mean, torch.sqrt(variance)), 1)


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Each pixel's column and row, from -1 to 1; rounded to float32, as models keep them."""
    columns, rows = (torch.linspace(-1, 1, n).double() for n in (width, height))
    return columns.expand(height, width), rows[:, None].expand(height, width)


def _decode(model: Any, slots: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Means [B, K, 3, H, W] and mask logits [B, K, 1, H, W]."""
    decoder, c = model.decoder, model.config
    if c.decoder_constant is not None:
        slots = torch.cat([slots, torch.full_like(slots[:, :1], c.decoder_constant)], dim=1)
    grid = [side + decoder.spec.margin for side in size]
    coordinates = torch.stack(_grid(*grid)).expand(len(slots), -1, -1, -1)
    x = torch.cat([slots[:, :, None, None].expand(-1, -1, *grid), coordinates], dim=1)
    for convolution in decoder.convolutions:
        x = F.elu(convolution(x))
    x = decoder.output(x).unflatten(0, (-1, c.num_slots))
    means = x[:, :, :3]
    return (means.sigmoid() if c.rgb_activation == "sigmoid" else means), x[:, :, 3:]


def _log_densities(model: Any, images: Tensor, means: Tensor) -> Tensor:
    """Of each channel under each slot; [B, K, 3, H, W], or [B, K, 1, H, W] where joint."""
    kind, scale = model.config.likelihood, model.config.sigma
    if kind == "logistic":
        u = (images[:, None] - means) / scale
        each = torch.log(torch.exp(-u) / (scale * (1 + torch.exp(-u)).square()))
    else:
        each = Normal(means, scale).log_prob(images[:, None])
    if kind == "mixture":
        return each + 0.5 * math.log(2 * math.pi)
    return each.sum(2, keepdim=True)


def _log_likelihood(logits: Tensor, densities: Tensor) -> Tensor:
    """Of each pixel, [B, 1, H, W]."""
    mixed = (logits.log_softmax(1) + densities).logsumexp(1)
    return mixed.sum(1, keepdim=True)


def _norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Over all but the leading dimensions B and K; scale and offset for each channel."""
    dims = tuple(range(2, x.dim()))
    x = (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
    if weight is None or bias is None:
        return x
    shape = (-1, *[1] * (x.dim() - 3))
    return x * weight.view(shape) + bias.view(shape)


def _authors_images(
    model: Any,
    images: Tensor,
    means: Tensor,
    log_masks: Tensor,
    logits: Tensor,
    of_means: Tensor,
    of_masks: Tensor,
) -> Tensor:
    slots, (height, width) = means.shape[1], images.shape[2:]
    densities = _log_densities(model, images, means)
    total = densities.sum(2, keepdim=True)
    pixel = torch.logsumexp((log_masks + densities).flatten(1, 2), 1)[:, None, None]
    column, row = _grid(height, width)
    shared = [images[:, None], _norm(pixel).detach(), column.view(1, 1, 1, height, width),
              row.view(1, 1, 1, height, width)]  # fmt: skip
    image, pixel, column, row = (x.expand(len(images), slots, -1, -1, -1) for x in shared)
    return torch.cat(
        [means, log_masks, logits, total - total.logsumexp(1, keepdim=True),
         _norm(of_means).detach(), _norm(of_masks).detach(), image, pixel, column, row],
        dim=2,
    )  # fmt: skip


def _deepmind_images(
    model: Any, images: Tensor, means: Tensor, logits: Tensor, of_means: Tensor, of_masks: Tensor
) -> Tensor:
    slots, (height, width) = means.shape[1], images.shape[2:]
    net = model.inputs
    densities = _log_densities(model, images, means)
    pixel = _log_likelihood(logits, densities)
    added = []
    for k in range(slots):
        others = [j for j in range(slots) if j != k]
        added.append(pixel - _log_likelihood(logits[:, others], densities[:, others]))
    product = densities.sum(2, keepdim=True).exp()
    if model.config.coordinates == "cosine":
        column, row = (math.pi * (x + 1) / 2 for x in _grid(height, width))
        waves = [torch.cos(i * column) * torch.cos(j * row) for i in range(3) for j in range(3)]
        coordinates = torch.stack(waves[1:])
    else:
        coordinates = torch.stack(_grid(height, width))
    pixel = _norm(pixel[:, None].detach(), net.norm_pixel.weight, net.norm_pixel.bias)
    shared = [images[:, None], pixel, torch.full_like(pixel, 0.5), coordinates[None, None]]
    return torch.cat(
        [
            means,
            logits,
            logits.softmax(1),
            product / (product.sum(1, keepdim=True) + 1e-6),
            _norm(of_means.detach(), net.norm_means.weight, net.norm_means.bias),
            _norm(of_masks.detach(), net.norm_masks.weight, net.norm_masks.bias),
            _norm(torch.stack(added, 1).detach(), net.norm_added.weight, net.norm_added.bias),
            *(x.expand(len(images), slots, -1, -1, -1) for x in shared),
        ],
        dim=2,
    )


def _encode(model: Any, x: Tensor) -> Tensor:
    net, stride = model.refinement, model.config.encoder_stride
    for convolution in net.convolutions:
        padding = []
        for side, kernel in zip(x.shape[:1:-1], convolution.kernel_size, strict=True):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        x = F.elu(F.conv2d(F.pad(x, padding), convolution.weight, convolution.bias, stride))
    x = x.mean((2, 3)) if model.config.pooling == "mean" else F.avg_pool2d(x, 4).flatten(1)
    for layer in net.code[:-1]:
        x = F.elu(layer(x))
    return net.code[-1](x)


def _lstm(cell: nn.LSTMCell, x: Tensor, hidden: Tensor, memory: Tensor) -> list[Tensor]:
    gates = x @ cell.weight_ih.T + cell.bias_ih + hidden @ cell.weight_hh.T + cell.bias_hh
    enter, forget, candidate, leave = gates.chunk(4, dim=1)
    memory = forget.sigmoid() * memory + enter.sigmoid() * candidate.tanh()
    return [leave.sigmoid() * memory.tanh(), memory]


def _update(model: Any, code: Tensor, vectors: list[Tensor], state: list[Tensor]) -> Tensor:
    net = model.refinement
    if net.merge is None:
        hidden = torch.cat([code, *vectors], dim=1)
    else:
        hidden = F.elu(net.merge(torch.cat([F.elu(code), *vectors], dim=1)))
    if net.cell is not None:
        if not state:
            state += [hidden.new_zeros(len(hidden), net.cell.hidden_size) for _ in range(2)]
        state[:] = _lstm(net.cell, hidden, *state)
        hidden = state[0]
    return torch.cat([net.mean(hidden), net.raw(hidden)], dim=1)


def objective(
    model: Any, images: Tensor, geco: GECO | None = None, kl_weight: float = 1.0
) -> Tensor:
    """The loss of `model.objective`, with noise from the global generator in the same order."""
    c, batch = model.config, len(images)
    parameters = model.initial.expand(batch * c.num_slots, -1)
    prior = Independent(Normal(torch.zeros(c.slot_dim).double(), 1.0), 1)
    if c.prior == "softplus":
        prior = Independent(Normal(torch.zeros(c.slot_dim).double(), math.log(2) ** 0.5), 1)
    total = images.new_zeros(())
    state: list[Tensor] = []
    for step in range(c.refinement_steps + 1):
        posterior = _posterior(model, parameters)
        slots = posterior.rsample()
        means, logits = _decode(model, slots, images.shape[2:])
        log_masks = logits.log_softmax(1)
        densities = _log_densities(model, images, means)
        mixed = (log_masks + densities).logsumexp(1)
        nll = -mixed.sum(dim=(1, 2, 3)).mean()
        kl = kl_divergence(posterior, prior).view(batch, -1).sum(1).mean()
        if geco is None or kl_weight == 0:
            loss = nll + kl_weight * kl
        else:
            slack = geco.target_per_dim * images[0].numel() - nll
            multiplier = math.log(1 + math.exp(geco.raw_multiplier))
            loss = kl_weight * kl - multiplier * (slack + (geco.moving_average - slack).detach())
        if c.step_weights == "fractions":
            total = total + (step + 1) / (c.refinement_steps + 1) * loss
        else:
            weights = torch.linspace(0, 1, c.refinement_steps + 1, dtype=torch.float64)
            total = total + weights[step] * loss
        if step == c.refinement_steps:
            return total
        masks = log_masks if c.inputs == "authors" else logits
        of_means, of_masks, of_parameters = torch.autograd.grad(
            loss, (means, masks, parameters), create_graph=True
        )
        if c.inputs == "authors":
            seen = _authors_images(model, images, means, log_masks, logits, of_means, of_masks)
            halves = [_norm(g[:, None])[:, 0].detach() for g in of_parameters.chunk(2, dim=1)]
            vectors = [parameters, *halves]
        else:
            seen = _deepmind_images(model, images, means, logits, of_means, of_masks)
            norm = model.inputs.norm_posterior
            normed = _norm(of_parameters.detach()[:, None])[:, 0] * norm.weight + norm.bias
            vectors = [parameters, normed, torch.full_like(normed[:, :1], 0.5)]
        code = _encode(model, seen.flatten(0, 1))
        parameters = parameters + _update(model, code, vectors, state)
    raise AssertionError("unreachable")
