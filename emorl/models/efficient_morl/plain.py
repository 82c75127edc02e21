"""EfficientMORL's objective in one page of plain PyTorch: the oracle of its tests.

Sections and equations are those of Emami et al. (ICML 2021). Nothing is rewritten or fused: every
slot's broadcast latent image is made, the Dual GRU is one padded block-diagonal GRU, KL terms come
from torch.distributions, and one backward pass goes through everything.

Legend: B batch, K slots, M = B * K, N pixels, D slot width; lambda [M, 2D] means and raw variances.
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

    # Stage 1, section 3.1: L layers of slot attention, each with a posterior over slots.
    features = plain.encode(model.encoder, images)
    posterior = model.posterior.initial.expand(batch * c.num_slots, -1)  # lambda
    slots = plain.gaussian(posterior).rsample()
    layers = []
    for _ in range(c.stochastic_layers):
        posterior = _layer(model, slots, posterior, features)
        slots = plain.gaussian(posterior).rsample()
        layers.append(posterior)
    kl, prior = _hierarchical_kl(model, layers, torch.zeros_like(slots))

    # Stage 2, section 3.2: the gradient of its loss improves the last layer's posterior.
    losses: list[Tensor] = []
    hidden = torch.zeros_like(slots)
    for i in range(steps + 1):
        if i > 0:  # create_graph is as released, though no gradient flows through the gradient
            (gradient,) = torch.autograd.grad(losses[-1], posterior, create_graph=True)
            update, hidden = _refinement(model, posterior, gradient.detach(), hidden)
            posterior = posterior + update
            slots = plain.gaussian(posterior).rsample()
            kl = kl_divergence(plain.gaussian(posterior), prior)
        nll = _nll(model, images, slots).mean()
        losses.append(plain.loss(nll, kl.sum() / batch, geco, kl_weight, images[0].numel()))

    # Equation 8: the losses' weighted sum. The released code's weights are flatter.
    weights = [1.0, *((steps - (i - 1)) / (steps + 1) for i in range(1, steps + 1))]
    if c.refinement_weighting == "released":
        weights = [(steps - (i - 1) + 2) / (steps + 1) for i in range(steps + 1)]
    return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum()


def _layer(model: Any, slots: Tensor, posterior: Tensor, features: Tensor) -> Tensor:
    """The next layer's lambda, by slot attention and the Dual GRU (section 3.1)."""
    net, dim = model.posterior, model.config.slot_dim
    query = net.query(net.norm_slots(slots)) * dim**-0.5
    query = query.view(len(features), -1, dim)
    attention = torch.einsum("bkd,bnd->bkn", query, net.key(features)).softmax(1) + 1e-8
    attention = attention / attention.sum(-1, keepdim=True)
    update = torch.einsum("bkn,bnd->bkd", attention, net.value(features)).flatten(0, 1)
    mean, raw = _recurrence(model, update, posterior).chunk(2, dim=1)
    mean = mean + net.mlp_mean(net.norm_mean(mean))
    return torch.cat([mean, raw + net.mlp_raw(net.norm_raw(raw))], dim=1)


def _recurrence(model: Any, update: Tensor, state: Tensor) -> Tensor:
    """The Dual GRU, equation 9: block-diagonal weights, one block for means, one for variances."""
    gru = model.posterior.gru
    if model.config.gru == "single":
        return gru.cell(gru.project(update), state)
    weight = {
        name: torch.block_diag(getattr(gru, f"weight_{name}_1"), getattr(gru, f"weight_{name}_2")).T
        for name in ("ih", "hh", "in", "hn")
    }
    x = torch.cat([update, update], dim=1)
    gates = x @ weight["ih"] + gru.bias_ih + state @ weight["hh"] + gru.bias_hh
    reset_mean, gate_mean, reset_raw, gate_raw = gates.sigmoid().chunk(4, dim=1)
    reset, gate = torch.cat([reset_mean, reset_raw], 1), torch.cat([gate_mean, gate_raw], 1)
    from_state = state @ weight["hn"] + gru.bias_hn
    candidate = torch.tanh(x @ weight["in"] + gru.bias_in + reset * from_state)
    return (1 - gate) * candidate + gate * state


def _hierarchical_kl(model: Any, layers: list[Tensor], zeros: Tensor) -> tuple[Tensor, Independent]:
    """KL terms of all layers, [M], and the prior of refinement (section 3.3)."""
    standard = prior = Independent(Normal(zeros, zeros + 1), 1)
    kl, above = zeros.sum(1), None
    for posterior in layers if model.config.prior == "bottom_up" else reversed(layers):
        if above is not None:  # p(z | a sample of the layer before), a small network
            hidden = F.elu(model.prior.hidden(plain.gaussian(above).rsample()))
            prior = plain.gaussian(
                torch.cat([model.prior.mean(hidden), model.prior.raw(hidden)], 1)
            )
        kl, above = kl + kl_divergence(plain.gaussian(posterior), prior), posterior
    return kl, prior if model.config.prior == "reversed++" else standard


def _refinement(
    model: Any, posterior: Tensor, gradient: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """The update of lambda by its loss gradient, and the network's next state (section 3.2)."""
    net, dim = model.refinement, model.config.slot_dim
    normed = [F.layer_norm(half, (dim,)) for half in gradient.chunk(2, dim=1)]
    x = net.encoded(F.elu(net.hidden(torch.cat([posterior, *normed], dim=1))))
    hidden = net.cell(x, hidden)
    return torch.cat([net.mean(hidden), net.raw(hidden)], dim=1), hidden


def _nll(model: Any, images: Tensor, slots: Tensor) -> Tensor:
    """Negative log-likelihood of each image, [B], without log(2 pi) / 2, as released."""
    decoded = plain.decode(model.decoder, slots, images.shape[-2:]).unflatten(0, (len(images), -1))
    rgb, log_masks = decoded[:, :, :3].sigmoid(), decoded[:, :, 3:].log_softmax(dim=1)
    if model.config.likelihood == "gaussian":
        mean = (log_masks.exp() * rgb).sum(1)
        log_likelihood = Normal(mean, model.config.sigma).log_prob(images)
    else:
        each = Normal(rgb, model.config.sigma).log_prob(images[:, None])
        log_likelihood = (log_masks + each).logsumexp(1)
    return -(log_likelihood + 0.5 * math.log(2 * math.pi)).sum(dim=(1, 2, 3))
