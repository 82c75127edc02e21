"""Slot attention of the Object-Centric Learning Framework (Amazon, Apache-2.0) with our operator.

Constructors, calls, keys and shapes of the state dict, first weights and noise under a seed are
theirs; outputs and gradients differ by rounding. What differs: a second derivative needs
`backend="reference"`; there are no public methods `step` and `iterate`; with implicit
differentiation the first iterations record no gradient, which theirs throw away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emorl.compat.rules import RuledModule, rule
from emorl.nn.slot_iterations import Gradient, SlotLayers, SlotRules, iterate
from emorl.ops import Backend

Initialiser = Callable[[Tensor], Any]


class SlotAttention(RuledModule):
    """Slot attention in which slots and heads compete together, with any MLP or none.

    Args:
        dim: D.
        feature_dim: C, width of the inputs.
        kvq_dim: width of queries, keys and values, all heads'; None for D.
        n_heads: number of heads.
        iters: T, at least 1.
        eps: added to each attention weight.
        ff_mlp: from slots to slots, its norm and residual included; None for no MLP.
        use_projection_bias: whether queries, keys and values have biases.
        use_implicit_differentiation: differentiate one more iteration, and that one alone.
        backend: of `emorl.ops.slot_attention`; not in the original.
    """

    fixed = frozenset({"n_heads", "kvq_dim", "dims_per_head"})
    eps, scale = rule("eps"), rule("scale")

    def __init__(
        self,
        dim: int,
        feature_dim: int,
        kvq_dim: int | None = None,
        n_heads: int = 1,
        iters: int = 3,
        eps: float = 1e-8,
        ff_mlp: nn.Module | None = None,
        use_projection_bias: bool = False,
        use_implicit_differentiation: bool = False,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.dim, self.n_heads, self.iters = dim, n_heads, iters
        self.kvq_dim = dim if kvq_dim is None else kvq_dim
        if self.kvq_dim % n_heads:
            raise ValueError(
                f"SlotAttention: n_heads: expected a divisor of {self.kvq_dim}, got {n_heads}"
            )
        self.dims_per_head = self.kvq_dim // n_heads
        self._rules = SlotRules(
            scale=self.dims_per_head**-0.5,
            heads=n_heads,
            softmax_over="slots_heads",
            eps=eps,
            masked_update="mean",
            gradient=_gradient(use_implicit_differentiation),
            backend=backend,
        )
        self.to_q = nn.Linear(dim, self.kvq_dim, bias=use_projection_bias)
        self.to_k = nn.Linear(feature_dim, self.kvq_dim, bias=use_projection_bias)
        self.to_v = nn.Linear(feature_dim, self.kvq_dim, bias=use_projection_bias)
        self.gru = nn.GRUCell(self.kvq_dim, dim)
        self.norm_input = nn.LayerNorm(feature_dim)
        self.norm_slots = nn.LayerNorm(dim)
        self.ff_mlp = ff_mlp

    @property
    def use_implicit_differentiation(self) -> bool:
        """As the constructor's."""
        return self._rules.gradient == "implicit"

    @use_implicit_differentiation.setter
    def use_implicit_differentiation(self, value: bool) -> None:
        self._rules = replace(self._rules, gradient=_gradient(value))

    def forward(
        self, inputs: Tensor, conditioning: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend to inputs [B, N, C] from the slots `conditioning` [B, K, D].

        Args:
            inputs: [B, N, C].
            conditioning: initial slots, [B, K, D].
            masks: [B, K], bool or numbers, true where the slot takes no part.

        Returns:
            Slots, [B, K, D], and the last softmax, its mean over heads, [B, K, N].
        """
        layers = SlotLayers(
            query=self.to_q,
            key=self.to_k,
            value=self.to_v,
            norm_inputs=self.norm_input,
            norm_slots=self.norm_slots,
            gru=self.gru,
            mlp=self.ff_mlp,
        )
        found = iterate(
            layers,
            self._rules,
            inputs,
            conditioning,
            self.iters + self.use_implicit_differentiation,
            slot_mask=None if masks is None else _taking_part(masks),
            keep_attention="last",
        )
        attention = found.attention[-1]
        return found.slots[-1], attention if attention.dim() == 3 else attention.mean(2)


def _gradient(implicit: bool) -> Gradient:
    return "implicit" if implicit else "full"


def _taking_part(masks: Tensor) -> Tensor:
    """True where the masks, of any dtype, are zero."""
    return ~masks.to(torch.bool)


class PerceptualGroupingOutput(NamedTuple):
    """What a grouping gives.

    Attributes:
        objects: [B, K, D].
        is_empty: [B, K], True where a slot was masked, or None.
        feature_attributions: [B, K, N].
    """

    objects: Tensor
    is_empty: Tensor | None = None
    feature_attributions: Tensor | None = None


class SlotAttentionGrouping(nn.Module):
    """Slot attention on the output of a feature extractor.

    Args:
        feature_dim: C.
        object_dim: D.
        kvq_dim: as in `SlotAttention`, like all down to `ff_mlp`.
        n_heads: number of heads.
        iters: T.
        eps: added to each attention weight.
        ff_mlp: from slots to slots.
        positional_embedding: called with features and positions, gives inputs.
        use_projection_bias: whether queries, keys and values have biases.
        use_implicit_differentiation: differentiate one more iteration alone.
        use_empty_slot_for_masked_slots: give masked slots one learned vector.
        backend: of `emorl.ops.slot_attention`; not in the original.
    """

    def __init__(
        self,
        feature_dim: int,
        object_dim: int,
        kvq_dim: int | None = None,
        n_heads: int = 1,
        iters: int = 3,
        eps: float = 1e-8,
        ff_mlp: nn.Module | None = None,
        positional_embedding: nn.Module | None = None,
        use_projection_bias: bool = False,
        use_implicit_differentiation: bool = False,
        use_empty_slot_for_masked_slots: bool = False,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.object_dim = object_dim
        self.slot_attention = SlotAttention(
            object_dim,
            feature_dim,
            kvq_dim,
            n_heads,
            iters,
            eps,
            ff_mlp,
            use_projection_bias,
            use_implicit_differentiation,
            backend=backend,
        )
        self.positional_embedding = positional_embedding
        self.empty_slot: nn.Parameter | None = None
        if use_empty_slot_for_masked_slots:
            self.empty_slot = nn.Parameter(torch.randn(object_dim) * object_dim**-0.5)

    def forward(
        self, feature: Any, conditioning: Tensor, slot_mask: Tensor | None = None
    ) -> PerceptualGroupingOutput:
        """Group features.

        Args:
            feature: has `features` [B, N, C] and, for a positional embedding, `positions`.
            conditioning: initial slots, [B, K, D].
            slot_mask: [B, K], bool or numbers, true where the slot takes no part.
        """
        inputs = feature.features
        if self.positional_embedding is not None:
            inputs = self.positional_embedding(inputs, feature.positions)
        slots, attention = self.slot_attention(inputs, conditioning, slot_mask)
        if slot_mask is not None and self.empty_slot is not None:
            slots = slots.where(_taking_part(slot_mask)[..., None], self.empty_slot.to(slots.dtype))
        return PerceptualGroupingOutput(slots, slot_mask, attention)


class RandomConditioning(nn.Module):
    """Slots drawn from one Gaussian.

    Args:
        object_dim: D.
        n_slots: K.
        learn_mean: whether the mean is a parameter; else a buffer.
        learn_std: whether the logarithm of the standard deviation is.
        mean_init: fills the mean.
        logsigma_init: fills the logarithm of the standard deviation.
    """

    slots_mu: Tensor
    slots_logsigma: Tensor

    def __init__(
        self,
        object_dim: int,
        n_slots: int,
        learn_mean: bool = True,
        learn_std: bool = True,
        mean_init: Initialiser = nn.init.xavier_uniform_,
        logsigma_init: Initialiser = nn.init.xavier_uniform_,
    ) -> None:
        super().__init__()
        self.object_dim, self.n_slots = object_dim, n_slots
        for name, learned in (("slots_mu", learn_mean), ("slots_logsigma", learn_std)):
            start = torch.zeros(1, 1, object_dim)
            if learned:
                self.register_parameter(name, nn.Parameter(start))
            else:
                self.register_buffer(name, start)
        with torch.no_grad():
            mean_init(self.slots_mu)
            logsigma_init(self.slots_logsigma)

    def forward(self, batch_size: int) -> Tensor:
        """Slots, [B, K, D]."""
        mean = self.slots_mu.expand(batch_size, self.n_slots, -1)
        return mean + self.slots_logsigma.exp() * torch.randn_like(mean)


class SlotwiseLearntConditioning(nn.Module):
    """Slots drawn each from a Gaussian of its own.

    Args:
        object_dim: D.
        n_slots: K.
        mean_init: fills the means.
        logsigma_init: fills the logarithms of the standard deviations.
    """

    def __init__(
        self,
        object_dim: int,
        n_slots: int,
        mean_init: Initialiser = nn.init.normal_,
        logsigma_init: Initialiser = nn.init.xavier_uniform_,
    ) -> None:
        super().__init__()
        self.object_dim, self.n_slots = object_dim, n_slots
        self.slots_mu = nn.Parameter(torch.zeros(1, n_slots, object_dim))
        self.slots_logsigma = nn.Parameter(torch.zeros(1, n_slots, object_dim))
        with torch.no_grad():
            mean_init(self.slots_mu)
            logsigma_init(self.slots_logsigma)

    def forward(self, batch_size: int) -> Tensor:
        """Slots, [B, K, D]."""
        mean = self.slots_mu.expand(batch_size, -1, -1)
        return mean + self.slots_logsigma.exp() * torch.randn_like(mean)


class LearntConditioning(nn.Module):
    """One learned vector for each slot.

    Args:
        object_dim: D.
        n_slots: K.
        slot_init: fills the vectors; None for standard normals.
    """

    def __init__(self, object_dim: int, n_slots: int, slot_init: Initialiser | None = None) -> None:
        super().__init__()
        self.object_dim, self.n_slots = object_dim, n_slots
        self.slots = nn.Parameter(torch.zeros(1, n_slots, object_dim))
        with torch.no_grad():
            (slot_init or nn.init.normal_)(self.slots)

    def forward(self, batch_size: int) -> Tensor:
        """Slots, [B, K, D]."""
        return self.slots.expand(batch_size, -1, -1)
