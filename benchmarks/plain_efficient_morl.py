"""The objective of EfficientMORL in the plainest form: the tests' oracle, the benchmarks' start.

No score-once, no split of the first convolution, no fused attention, no batched GRU halves:
every slot's broadcast latent image is made, the Dual GRU is one padded block-diagonal GRU, KL
terms come from torch.distributions, and one backward pass goes through everything.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from emorl.models import EfficientMORL, ObjectCentricModel
from emorl.training import GECO


def _normal(parameters: Tensor) -> Independent:
    mean, raw = parameters.chunk(2, dim=1)
    scale = torch.sqrt(torch.log(1 + torch.exp(raw.clamp(max=80))) + 1e-5)
    return Independent(Normal(mean, scale), 1)


def _ramps(height: int, width: int) -> Tensor:
    down, up = torch.linspace(0, 1, height), torch.linspace(1, 0, height)
    right, left = torch.linspace(0, 1, width), torch.linspace(1, 0, width)
    from_bottom, from_left = torch.meshgrid(up, right, indexing="ij")
    from_top, from_right = torch.meshgrid(down, left, indexing="ij")
    return torch.stack([from_bottom, from_top, from_left, from_right])


def _positions(project: torch.nn.Linear, height: int, width: int) -> Tensor:
    ramps = _ramps(height, width).to(project.weight)
    return project(ramps.permute(1, 2, 0)).permute(2, 0, 1)


def features_of(model: ObjectCentricModel, images: Tensor) -> Tensor:
    """The encoder's, [B, N, C]; of any model that has this encoder."""
    x = 2 * images - 1
    for convolution in model.encoder.convolutions:
        x = convolution(x).relu()
    x = x + _positions(model.encoder.position.project, *x.shape[-2:])
    x = model.encoder.norm(x.flatten(2).transpose(1, 2))
    return model.encoder.output(model.encoder.hidden(x).relu())


def _block_diagonal(gru: torch.nn.Module, name: str) -> Tensor:
    return torch.block_diag(getattr(gru, f"weight_{name}_1"), getattr(gru, f"weight_{name}_2"))


def _recurrence(model: EfficientMORL, update: Tensor, state: Tensor) -> Tensor:
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


def _layer(model: EfficientMORL, slots: Tensor, state: Tensor, features: Tensor) -> Tensor:
    net, dim = model.posterior, model.config.slot_dim
    query = net.query(net.norm_slots(slots)) * dim**-0.5
    query = query.view(len(features), -1, dim)
    attention = torch.einsum("bkd,bnd->bkn", query, net.key(features)).softmax(1) + 1e-8
    attention = attention / attention.sum(-1, keepdim=True)
    update = torch.einsum("bkn,bnd->bkd", attention, net.value(features)).flatten(0, 1)
    mean, raw = _recurrence(model, update, state).chunk(2, dim=1)
    mean = mean + net.mlp_mean(net.norm_mean(mean))
    return torch.cat([mean, raw + net.mlp_raw(net.norm_raw(raw))], dim=1)


def decode(model: ObjectCentricModel, slots: Tensor, size: tuple[int, int]) -> Tensor:
    """Of slots [M, D], colours and mask logits [M, 4, H, W]; of any model that has this decoder."""
    decoder = model.decoder
    if model.config.decoder == "big":
        grid, activation = (size[0] // 16, size[1] // 16), F.relu
    else:
        margin = {"iodine": 10, "small": 6}[model.config.decoder]
        grid = (size[0] + margin, size[1] + margin)
        activation = {"elu": F.elu, "relu": F.relu}[decoder.spec.activation]
    x = slots[:, :, None, None].expand(-1, -1, *grid)
    x = x + _positions(decoder.position.project, *grid)
    for convolution in decoder.convolutions:
        x = activation(convolution(x))
    return decoder.output(x)


def _nll(model: EfficientMORL, images: Tensor, slots: Tensor) -> Tensor:
    decoded = decode(model, slots, images.shape[-2:]).unflatten(0, (len(images), -1))
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


def _prior(model: EfficientMORL, slots: Tensor) -> Independent:
    hidden = F.elu(model.prior.hidden(slots))
    return _normal(torch.cat([model.prior.mean(hidden), model.prior.raw(hidden)], dim=1))


def objective(
    model: EfficientMORL,
    images: Tensor,
    geco: GECO | None = None,
    kl_weight: float = 1.0,
) -> Tensor:
    """The loss of `model.objective`, with noise from the global generator in the same order."""
    c = model.config
    batch, dims = len(images), images[0].numel()
    state = model.posterior.initial.expand(batch * c.num_slots, -1)
    slots = _normal(state).rsample()
    features = features_of(model, images)
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

    total, hidden = images.new_zeros(()), torch.zeros_like(slots)
    for i in range(c.refinement_steps + 1):
        if i > 0:
            (gradient,) = torch.autograd.grad(loss, state, create_graph=True)  # noqa: F821
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
