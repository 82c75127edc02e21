"""The slot attention module of the models, which tells what each iteration gave.

Legend: B batch, K slots, N pixels, C channels, D slot width, T iterations.
"""

from __future__ import annotations

from torch import Tensor, nn

from emorl.nn.networks import LinearFeatures
from emorl.nn.slot_attention import SlotAttentionLayers
from emorl.nn.slot_iterations import (
    Gradient,
    KeepAttention,
    SlotIterations,
    SlotRules,
    iterate,
)
from emorl.ops import Backend


class SlotAttention(SlotAttentionLayers):
    """Slots that compete for pixels, T times over (Locatello et al. 2020, algorithm 1).

        update = mean of W_v x over pixels, weighted by the softmax over slots of
                 (W_q LN(slots)) . (W_k x) / sqrt(D)
        slots = GRU(update, slots)
        slots = slots + MLP(LN(slots)),        with x = LN(features), or features themselves

    Its other variants, and initial slots, are `emorl.nn.SlotAttention`'s.

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

    mlp: nn.Sequential

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
        gradient: Gradient = "implicit" if implicit_gradient else "full"
        super().__init__(
            dim=dim,
            rules=SlotRules(scale=dim**-0.5, gradient=gradient, backend=backend),
            input_dim=channels,
            hidden=hidden,
            norm_inputs=norm_inputs,
            gain=gain,
        )

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
        keep: KeepAttention = "every" if keep_attention else "none"
        return iterate(self.layers(), self.rules, features, slots, iterations, keep_attention=keep)
