"""Slot attention as a module: attention, a GRU and an MLP, iterated.

Legend: B batch, K slots, M = B * K, N pixels, C channels, D slot width, T iterations.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from emorl.models.slot_autoencoder import SlotIterations
from emorl.nn.initialisation import init_xavier
from emorl.nn.networks import AbsorbedAttention, LinearFeatures, is_plain
from emorl.ops import Backend


class SlotAttention(nn.Module):
    """Slots that compete for pixels, T times over (Locatello et al. 2020, algorithm 1).

        update = mean of W_v x over pixels, weighted by the softmax over slots of
                 (W_q LN(slots)) . (W_k x) / sqrt(D)
        slots = GRU(update, slots)
        slots = slots + MLP(LN(slots)),        with x = LN(features), or features themselves

    Keys and values are never made: what is linear before them, W_k and W_v and the layer norm's
    scale and shift (without it: the features' last layer), is absorbed into the few slots.

    Args:
        channels: C, width of the features.
        dim: D, width of a slot.
        hidden: width of the MLP's hidden layer.
        norm_inputs: whether the features are normalised before keys and values.
        implicit_gradient: differentiate the last iteration alone, as at a fixed point (Chang et
            al. 2022). Initial slots then get no gradient.
        gain: of the initial weights (Xavier normal) of projections and MLP; the GRU keeps
            PyTorch's initialisation.
        backend: of the slot attention op.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        hidden: int = 128,
        *,
        norm_inputs: bool = True,
        implicit_gradient: bool = False,
        gain: float = 1.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.dim, self.implicit_gradient, self.backend = dim, implicit_gradient, backend
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(channels, dim, bias=False)
        self.value = nn.Linear(channels, dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        init_xavier(self, gain)
        self.norm_inputs = nn.LayerNorm(channels) if norm_inputs else None
        self.norm_slots = nn.LayerNorm(dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.gru = nn.GRUCell(dim, dim)

    def forward(
        self,
        features: Tensor | LinearFeatures,
        slots: Tensor,
        iterations: int = 3,
        keep_attention: bool = False,
    ) -> SlotIterations:
        """Attend to the features of images.

        Args:
            features: [B, N, C].
            slots: initial ones, [B, K, D].
            iterations: T.
            keep_attention: fill `SlotIterations.attention`.

        Returns:
            Slots and attention of T iterations; with `implicit_gradient` all slots but the last
            ones are detached.
        """
        pixels = AbsorbedAttention.through(self._linear(features), self.key, self.value)
        states, maps = [slots], []
        for _ in range(iterations):
            if self.implicit_gradient:
                states[-1] = states[-1].detach()
            query = self.query(self.norm_slots(states[-1])) * self.dim**-0.5
            update, attention = pixels.attend(query, keep_attention, self.backend)
            states.append(self._update(update, states[-1]))
            if attention is not None:
                maps.append(attention)
        return SlotIterations(states[1:], maps)

    def _linear(self, features: Tensor | LinearFeatures) -> LinearFeatures:
        """The tensor of pixels to attend to, and what is linear between it and keys and values."""
        norm = self.norm_inputs
        if norm is None:
            return LinearFeatures.of(features) if isinstance(features, Tensor) else features
        dense = features if isinstance(features, Tensor) else features.dense()
        if not is_plain(norm, nn.LayerNorm):
            return LinearFeatures.of(norm(dense))
        hidden = F.layer_norm(dense, norm.normalized_shape, eps=norm.eps)
        return LinearFeatures(hidden, norm.weight.diag(), norm.bias)

    def _update(self, update: Tensor, slots: Tensor) -> Tensor:
        moved: Tensor = self.gru(update.flatten(0, 1), slots.flatten(0, 1))
        return (moved + self.mlp(self.norm_mlp(moved))).view_as(slots)
