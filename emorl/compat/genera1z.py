"""The aggregator of Genera1Z's repositories (DIAS, RandSF.Q, SmoothSA, ...) with our operator.

Constructor, call, keys and shapes of the state dict and first weights are theirs; outputs and
gradients differ by rounding. What differs: a second derivative needs `backend="reference"`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from emorl.compat.rules import RuledModule
from emorl.nn.residual_mlp import ResidualMLP
from emorl.nn.slot_iterations import Gradient, SlotLayers, SlotRules, iterate
from emorl.ops import Backend

TruncBP = Literal["bi-level"] | None


class SlotAttention(RuledModule):
    """Slot attention whose eps is added to a slot's sum of weights.

    Args:
        num_iter: T.
        embed_dim: D.
        ffn_dim: width of the MLP's hidden layer.
        dropout: after the MLP's activation.
        kv_dim: C, width of the inputs; None for D.
        trunc_bp: "bi-level" differentiates the last iteration, and initial slots through it.
        backend: of `emorl.ops.slot_attention`; not in the original.
    """

    def __init__(
        self,
        num_iter: int,
        embed_dim: int,
        ffn_dim: int,
        dropout: float = 0,
        kv_dim: int | None = None,
        trunc_bp: TruncBP = None,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        channels = kv_dim or embed_dim
        self.num_iter = num_iter
        self._rules = SlotRules(
            scale=embed_dim**-0.5,
            eps=1e-5,
            eps_in="sum",
            gradient=_gradient(trunc_bp),
            backend=backend,
        )
        self.norm1q = nn.LayerNorm(embed_dim)
        self.proj_q = nn.Linear(embed_dim, embed_dim, bias=False)
        self.norm1kv = nn.LayerNorm(channels)
        self.proj_k = nn.Linear(channels, embed_dim, bias=False)
        self.proj_v = nn.Linear(channels, embed_dim, bias=False)
        self.rnn = nn.GRUCell(embed_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        dropouts = [nn.Dropout(dropout)] if dropout else []
        self.ffn = nn.Sequential(
            nn.Linear(embed_dim, ffn_dim), nn.GELU(), *dropouts, nn.Linear(ffn_dim, embed_dim)
        )

    @property
    def trunc_bp(self) -> TruncBP:
        """As the constructor's."""
        return "bi-level" if self._rules.gradient == "bilevel" else None

    @trunc_bp.setter
    def trunc_bp(self, value: TruncBP) -> None:
        self._rules = replace(self._rules, gradient=_gradient(value))

    def forward(
        self,
        input: Tensor,
        query: Tensor,
        smask: Tensor | None = None,
        num_iter: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend to `input` [B, N, C] from the slots `query` [B, K, D].

        Args:
            input: [B, N, C].
            query: initial slots, [B, K, D].
            smask: [B, K], bool, True where the slot takes part.
            num_iter: T, instead of the constructor's.

        Returns:
            Slots, [B, K, D], and the last iteration's softmax, [B, K, N].
        """
        layers = SlotLayers(
            query=self.proj_q,
            key=self.proj_k,
            value=self.proj_v,
            norm_inputs=self.norm1kv,
            norm_slots=self.norm1q,
            gru=self.rnn,
            mlp=ResidualMLP(self.norm2, self.ffn),
        )
        times = num_iter or self.num_iter
        found = iterate(
            layers, self._rules, input, query, times, slot_mask=smask, keep_attention="last"
        )
        return found.slots[-1], found.attention[-1]


def _gradient(trunc_bp: TruncBP) -> Gradient:
    if trunc_bp not in ("bi-level", None):
        raise ValueError(f"SlotAttention: trunc_bp: expected bi-level or None, got {trunc_bp}")
    return "full" if trunc_bp is None else "bilevel"
