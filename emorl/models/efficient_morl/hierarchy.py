"""The hierarchical posterior (stage 1 of EfficientMORL), its recurrent update, and its priors.

Legend: B batch, K slots, M = B * K, N pixels, C channels, D slot width, L stochastic layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.nn.initialisation import init_xavier
from emorl.nn.networks import AbsorbedAttention, LinearFeatures
from emorl.nn.posterior import Gaussian, kl_divergence
from emorl.ops import Backend
from emorl.ops.library import full_precision

PriorKind = Literal["bottom_up", "reversed", "reversed++"]
GRUKind = Literal["dual", "single"]


@dataclass
class Hierarchy:
    """The result of the bottom-up pass.

    Attributes:
        posteriors: of each layer, [M, D].
        samples: one of each layer, [M, D].
        attention: softmax over slots of each layer, [B, K, N], if requested.
    """

    posteriors: list[Gaussian]
    samples: list[Tensor]
    attention: list[Tensor]


class DualGRU(nn.Module):
    """Two GRU cells that read the same input, one for the mean and one for the raw variance.

    Emami et al. 2021, equation 9: one GRU with block-diagonal weights. The blocks are the
    parameters (in the released code's shapes and order); nothing is padded or multiplied by zero.
    All weights and biases start as standard normals, as in the released code.

    Args:
        dim: D, width of the input and of each half of the state.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        shapes = {
            "weight_ih_1": (2 * dim, dim),
            "weight_hh_1": (2 * dim, dim),
            "weight_ih_2": (2 * dim, dim),
            "weight_hh_2": (2 * dim, dim),
            "bias_ih": (4 * dim,),
            "bias_hh": (4 * dim,),
            "weight_in_1": (dim, dim),
            "weight_hn_1": (dim, dim),
            "weight_in_2": (dim, dim),
            "weight_hn_2": (dim, dim),
            "bias_in": (2 * dim,),
            "bias_hn": (2 * dim,),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def _halves(self, gates: str, candidate: str) -> tuple[Tensor, Tensor]:
        """Weights [2, D, 3D] and biases [2, 1, 3D] of both cells: reset, update, candidate."""
        weight = torch.stack(
            [
                torch.cat([getattr(self, f"weight_{gates}_{half}"),
                           getattr(self, f"weight_{candidate}_{half}")])
                for half in (1, 2)
            ]
        )  # fmt: skip
        bias_gates = getattr(self, f"bias_{gates}").view(2, -1)
        bias_candidate = getattr(self, f"bias_{candidate}").view(2, -1)
        return weight.mT, torch.cat([bias_gates, bias_candidate], dim=1)[:, None]

    def forward(self, update: Tensor, state: Gaussian) -> Gaussian:
        """One step.

        Args:
            update: [M, D].
            state: mean and raw variance, [M, D] each.

        Returns:
            The next state.
        """
        hidden = torch.stack(state)  # [2, M, D]
        weight_x, bias_x = self._halves("ih", "in")
        weight_h, bias_h = self._halves("hh", "hn")
        from_x = torch.baddbmm(bias_x, update.expand(2, -1, -1), weight_x)
        from_h = torch.baddbmm(bias_h, hidden, weight_h)
        reset_x, gate_x, candidate_x = from_x.chunk(3, dim=2)
        reset_h, gate_h, candidate_h = from_h.chunk(3, dim=2)
        reset = torch.sigmoid(reset_x + reset_h)
        gate = torch.sigmoid(gate_x + gate_h)
        candidate = torch.tanh(candidate_x + reset * candidate_h)
        mean, raw = torch.lerp(candidate, hidden, gate).unbind(0)
        return Gaussian(mean, raw)


class SingleGRU(nn.Module):
    """The ablation of the Dual GRU: one GRU cell over mean and raw variance together.

    Args:
        dim: D, width of the input and of each half of the state.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, 2 * dim)
        init_xavier(self.project)
        self.cell = nn.GRUCell(2 * dim, 2 * dim)

    def forward(self, update: Tensor, state: Gaussian) -> Gaussian:
        """One step; shapes as in `DualGRU.forward`."""
        return Gaussian.unpack(self.cell(self.project(update), state.packed()))


def _residual_mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))


class HierarchicalPosterior(nn.Module):
    """L stochastic slot attention layers with shared weights (Emami et al. 2021, section 3.1).

    Each layer attends to the pixels with a sample of the layer below, and updates mean and raw
    variance recurrently; the state is the parameters, not the sample.

    Args:
        channels: C, width of the pixel features.
        dim: D, width of a slot.
        layers: L; 0 leaves the learned initial posterior (refinement alone).
        gru: "dual" or "single" (the ablation).
        gain: of the projections' initial weights.
        raw_bias: initial bias of every layer's raw variance.
        backend: of the slot attention op.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        layers: int,
        gru: GRUKind,
        *,
        gain: float,
        raw_bias: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.layers, self.dim, self.backend = layers, dim, backend
        initial = torch.cat([torch.zeros(1, dim), torch.ones(1, dim)], dim=1)
        self.initial = nn.Parameter(initial)  # [1, 2D]: mean 0, raw variance 1
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(channels, dim, bias=False)
        self.value = nn.Linear(channels, dim, bias=False)
        self.mlp_mean = _residual_mlp(dim)
        self.mlp_raw = _residual_mlp(dim)
        init_xavier(self)
        for projection in (self.query, self.key, self.value):
            init_xavier(projection, gain)
        last = self.mlp_raw[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, raw_bias)
        self.norm_slots = nn.LayerNorm(dim)
        self.norm_mean = nn.LayerNorm(dim)
        self.norm_raw = nn.LayerNorm(dim)
        self.gru = DualGRU(dim) if gru == "dual" else SingleGRU(dim)

    def forward(
        self,
        features: LinearFeatures,
        num_slots: int,
        generator: torch.Generator | None,
        keep_attention: bool = False,
    ) -> Hierarchy:
        """Infer all layers, bottom up.

        Args:
            features: pixel features.
            num_slots: K.
            generator: of the noise; draws the initial slots, then one sample per layer.
            keep_attention: fill `Hierarchy.attention`.

        Returns:
            L posteriors and samples; for L = 0 the learned initial one.
        """
        with full_precision(self.initial):
            wide = features.to(self.initial.dtype)
            return self._infer(wide, num_slots, generator, keep_attention)

    def _infer(
        self,
        features: LinearFeatures,
        num_slots: int,
        generator: torch.Generator | None,
        keep_attention: bool,
    ) -> Hierarchy:
        batch = len(features.hidden)
        state = _differentiable(Gaussian.unpack(self.initial.expand(batch * num_slots, -1)))
        slots = state.sample(generator)
        if self.layers == 0:
            return Hierarchy([state], [slots], [])
        pixels = AbsorbedAttention.through(features, self.key, self.value)
        result = Hierarchy([], [], [])
        for _ in range(self.layers):
            query = self.query(self.norm_slots(slots)) * self.dim**-0.5
            query = query.view(batch, num_slots, -1)
            update, attention = pixels.attend(query, keep_attention, self.backend)
            if attention is not None:
                result.attention.append(attention)
            state = _differentiable(self._update(update.flatten(0, 1), state))
            slots = state.sample(generator)
            result.posteriors.append(state)
            result.samples.append(slots)
        return result

    def _update(self, update: Tensor, state: Gaussian) -> Gaussian:
        mean, raw = self.gru(update, state)
        mean = mean + self.mlp_mean(self.norm_mean(mean))
        raw = raw + self.mlp_raw(self.norm_raw(raw))
        return Gaussian(mean, raw)


def _differentiable(state: Gaussian) -> Gaussian:
    """Refinement differentiates with respect to a posterior, also where all weights are frozen."""
    if not torch.is_grad_enabled() or state.mean.requires_grad:
        return state
    return Gaussian(*(parameter.detach().requires_grad_() for parameter in state))


class HierarchicalPrior(nn.Module):
    """Priors of the layers, each given a sample of its neighbour (sections 3.1 and 3.3).

    "bottom_up": p(z1) is standard normal and p(z_l | z_{l-1}) is learned; "reversed" and
    "reversed++": p(z_L) is standard normal and p(z_l | z_{l+1}) is learned. The conditional is
    shared by all layers.

    Args:
        dim: D, width of a slot.
        kind: of the prior.
        hidden: width of the hidden layer.
    """

    def __init__(self, dim: int, kind: PriorKind, hidden: int = 128) -> None:
        super().__init__()
        self.kind = kind
        self.hidden = nn.Linear(dim, hidden)
        self.mean = nn.Linear(hidden, dim)
        self.raw = nn.Linear(hidden, dim)
        init_xavier(self)

    def conditional(self, slots: Tensor) -> Gaussian:
        """The prior given a neighbouring layer's sample, [M, D]."""
        with full_precision(slots):
            hidden = F.elu(self.hidden(slots))
            return Gaussian(self.mean(hidden), self.raw(hidden))

    def forward(
        self, posteriors: list[Gaussian], generator: torch.Generator | None
    ) -> tuple[list[Tensor], Gaussian | None]:
        """KL of every layer, and the prior that refinement steps use.

        The conditioning samples are drawn afresh, from layer L down to 2 (bottom-up: 1 up to
        L - 1), as in the released code.

        Returns:
            KL of layers 1 to L, [M] each; and the refinement prior: p(z1 | z2) for "reversed++",
            else None, the standard normal (also for "bottom_up", where the paper says
            p(z_L | z_{L-1}) and the released code does this).
        """
        order = list(range(len(posteriors)))
        if self.kind != "bottom_up":
            order.reverse()
        divergences: dict[int, Tensor] = {}
        prior: Gaussian | None = None
        for previous, layer in zip([None, *order], order, strict=False):
            if previous is not None:
                prior = self.conditional(posteriors[previous].sample(generator))
            divergences[layer] = kl_divergence(posteriors[layer], prior)
        return [divergences[layer] for layer in sorted(divergences)], (
            prior if self.kind == "reversed++" else None
        )
