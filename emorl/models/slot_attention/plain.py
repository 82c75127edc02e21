"""Slot Attention's objective in one page of plain PyTorch: the oracle of its tests.

Algorithm 1 of Locatello et al. (NeurIPS 2020) as it is printed: dense keys and values, a GRU
written out, every slot's broadcast image; one backward pass goes through everything.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.nn import plain


def objective(model: Any, images: Tensor) -> Tensor:
    """The loss of `model.objective`, with noise from the global generator."""
    c, net = model.config, model.attention
    features = plain.encode(model.encoder, images)
    if c.variant == "original":
        features = net.norm_inputs(features)
    k, v = net.key(features), net.value(features)
    slots = _initial_slots(model, len(images))
    for i in range(1, c.iterations + 1):
        if not c.implicit_gradient:
            slots = _iterate(model, k, v, slots)
        elif i < c.iterations:  # towards the fixed point (Chang et al. 2022)
            with torch.no_grad():
                slots = _iterate(model, k, v, slots)
        else:
            slots = _iterate(model, k, v, slots.detach())
    return squared_error(model, images, slots)


def _initial_slots(model: Any, batch: int) -> Tensor:
    """First slots [B, K, D]: learned, or samples of one learned Gaussian."""
    c, net = model.config, model.initial_slots
    if c.initial_slots == "learned":
        return net.slots.repeat(batch, 1, 1)
    noise = torch.randn(batch, c.num_slots, c.slot_dim, dtype=model.decoder.output.weight.dtype)
    if c.variant == "original":
        return net.mean + net.raw.exp() * noise
    return net.mean + torch.sqrt(torch.log(1 + net.raw.exp()) + 1e-5) * noise


def _iterate(model: Any, k: Tensor, v: Tensor, slots: Tensor) -> Tensor:
    """One iteration: equation 1, the softmax over slots, and 2, the weighted mean; GRU and MLP."""
    net = model.attention
    q = net.query(net.norm_slots(slots)) * slots.shape[-1] ** -0.5
    attention = torch.einsum("bkd,bnd->bkn", q, k).softmax(dim=1) + 1e-8
    weights = attention / attention.sum(dim=2, keepdim=True)
    slots = _gru(net.gru, torch.einsum("bkn,bnd->bkd", weights, v), slots)
    return slots + net.mlp(net.norm_mlp(slots))


def _gru(cell: nn.GRUCell, x: Tensor, h: Tensor) -> Tensor:
    reset_x, gate_x, new_x = (x @ cell.weight_ih.T + cell.bias_ih).chunk(3, dim=-1)
    reset_h, gate_h, new_h = (h @ cell.weight_hh.T + cell.bias_hh).chunk(3, dim=-1)
    gate = (gate_x + gate_h).sigmoid()
    return (1 - gate) * torch.tanh(new_x + (reset_x + reset_h).sigmoid() * new_h) + gate * h


def squared_error(model: Any, images: Tensor, slots: Tensor) -> Tensor:
    """The loss of slots [B, K, D]: the reconstruction's squared error."""
    decoded = plain.decode(model.decoder, slots.flatten(0, 1), images.shape[-2:])
    decoded = decoded.unflatten(0, slots.shape[:2])
    rgb, masks = decoded[:, :, :3], decoded[:, :, 3:].softmax(dim=1)
    if model.config.variant == "original":
        return F.mse_loss((masks * rgb).sum(1), 2 * images - 1)
    return F.mse_loss((masks * rgb.sigmoid()).sum(1), images, reduction="sum") / len(images)
