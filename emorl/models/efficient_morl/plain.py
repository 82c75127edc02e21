"""EfficientMORL's objective in one page of plain PyTorch: the oracle of its tests.

No score-once, no split of the first convolution, no fused attention, no batched GRU halves:
every slot's broadcast latent image is made, the Dual GRU is one padded block-diagonal GRU, KL
terms come from torch.distributions, and one backward pass goes through everything.
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


def _normal(parameters: Tensor) -> Independent:
    mean, raw = parameters.chunk(2, dim=1)
    scale = torch.sqrt(torch.log(1 + torch.exp(raw.clamp(max=80))) + 1e-5)
    return Independent(Normal(mean, scale), 1)


def _block_diagonal(gru: Any, name: str) -> Tensor:
    return torch.block_diag(getattr(gru, f"weight_{name}_1"), getattr(gru, f"weight_{name}_2"))


def _recurrence(model: Any, update: Tensor, state: Tensor) -> Tensor:
    gru = model.posterior.gru
    if model.config.gru == "single":
        return gru.cell(gru.project(update), state)
    x = torch.cat([update, update], dim=1)
    gates = x @ _block_diagonal(gru, "ih").T + gru.bias_ih
    gates = gates + state @ _block_diagonal(gru, "hh").T + gru.bias_hh
    reset_mean, gate_mean, reset_raw, gate_raw = gates.sigmoid().chunk(4, dim=1)
    reset = torch.cat([reset_mean, reset_raw], dim=1)
    gate = torch.cat([gate_mean, gate_raw], dim=1)
    from_state = state @ _block_diagonal(gru, "hn").T + gru.bias_hn
    candidate = torch.tanh(x @ _block_diagonal(gru, "in").T + gru.bias_in + reset * from_state)
    return (1 - gate) * candidate + gate * state


def _layer(model: Any, slots: Tensor, state: Tensor, features: Tensor) -> Tensor:
    net, dim = model.posterior, model.config.slot_dim
    query = net.query(net.norm_slots(slots)) * dim**-0.5
    query = query.view(len(features), -1, dim)
    attention = torch.einsum("bkd,bnd->bkn", query, net.key(features)).softmax(1) + 1e-8
    attention = attention / attention.sum(-1, keepdim=True)
    update = torch.einsum("bkn,bnd->bkd", attention, net.value(features)).flatten(0, 1)
    mean, raw = _recurrence(model, update, state).chunk(2, dim=1)
    mean = mean + net.mlp_mean(net.norm_mean(mean))
    return torch.cat([mean, raw + net.mlp_raw(net.norm_raw(raw))], dim=1)


def _nll(model: Any, images: Tensor, slots: Tensor) -> Tensor:
    decoded = plain.decode(model.decoder, slots, images.shape[-2:]).unflatten(0, (len(images), -1))
    rgb, log_masks = decoded[:, :, :3].sigmoid(), decoded[:, :, 3:].log_softmax(dim=1)
    sigma = model.config.sigma
    half_log_two_pi = 0.5 * math.log(2 * math.pi)
    if model.config.likelihood == "gaussian":
        mean = (rgb * log_masks.exp()).sum(1)
        log_likelihood = Normal(mean, sigma).log_prob(images) + half_log_two_pi
    else:
        each = Normal(rgb, sigma).log_prob(images[:, None]) + half_log_two_pi
        log_likelihood = (log_masks + each).logsumexp(1)
    return -log_likelihood.sum(dim=(1, 2, 3))


def _prior(model: Any, slots: Tensor) -> Independent:
    hidden = F.elu(model.prior.hidden(slots))
    return _normal(torch.cat([model.prior.mean(hidden), model.prior.raw(hidden)], dim=1))


def objective(
    model: Any,
    images: Tensor,
    geco: GECO | None = None,
    kl_weight: float = 1.0,
) -> Tensor:
    """The loss of `model.objective`, with noise from the global generator in the same order."""
    c = model.config
    batch, dims = len(images), images[0].numel()
    state = model.posterior.initial.expand(batch * c.num_slots, -1)
    slots = _normal(state).rsample()
    features = plain.encode(model.encoder, images)
    states = []
    for _ in range(c.stochastic_layers):
        state = _layer(model, slots, state, features)
        states.append(state)
        slots = _normal(state).rsample()

    standard = Independent(Normal(torch.zeros_like(slots), torch.ones_like(slots)), 1)
    kl = torch.zeros(batch, dtype=images.dtype)
    prior = standard
    order = [*range(c.stochastic_layers)]
    if c.prior != "bottom_up":
        order.reverse()
    for position, layer in enumerate(order):
        if position > 0:
            prior = _prior(model, _normal(states[order[position - 1]]).rsample())
        kl = kl + kl_divergence(_normal(states[layer]), prior).view(batch, -1).sum(1)
    if c.prior != "reversed++":
        prior = standard

    total = loss = images.new_zeros(())
    hidden = torch.zeros_like(slots)
    for i in range(c.refinement_steps + 1):
        if i > 0:
            (gradient,) = torch.autograd.grad(loss, state, create_graph=True)
            parts = [F.layer_norm(g, (c.slot_dim,)).detach() for g in gradient.chunk(2, 1)]
            net = model.refinement
            x = net.encoded(F.elu(net.hidden(torch.cat([state, *parts], 1))))
            hidden = net.cell(x, hidden)
            state = state + torch.cat([net.mean(hidden), net.raw(hidden)], 1)
            posterior = _normal(state)
            slots = posterior.rsample()
            kl = kl_divergence(posterior, prior).view(batch, -1).sum(1)
        nll = _nll(model, images, slots).mean()
        if geco is None or kl_weight == 0:
            loss = nll + kl_weight * kl.mean()
        else:
            slack = geco.target_per_dim * dims - nll
            multiplier = math.log(1 + math.exp(geco.raw_multiplier))
            constraint = multiplier * (slack + (geco.moving_average - slack).detach())
            loss = kl_weight * kl.mean() - constraint
        if c.refinement_weighting == "released":
            weight = (c.refinement_steps + 2 - i + 1) / (c.refinement_steps + 1)
        else:
            weight = 1.0 if i == 0 else (c.refinement_steps - (i - 1)) / (c.refinement_steps + 1)
        total = total + weight * loss
    return total
