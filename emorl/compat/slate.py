"""The slot attention of SLATE and STEVE (Singh et al., MIT) with our operator.

Constructors, calls, keys and shapes of the state dict, first weights and noise under a seed are
theirs; outputs and gradients differ by rounding. What differs: a second derivative needs
`backend="reference"`, and any number of slots is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emorl.compat.gaussian import drawn
from emorl.compat.rules import RuledModule, rule
from emorl.nn.residual_mlp import ResidualMLP
from emorl.nn.slot_iterations import SlotLayers, SlotRules, iterate
from emorl.ops import Backend


def _linear(inputs: int, outputs: int, bias: bool = True, kaiming: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias)
    if kaiming:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    else:
        nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _gru_cell(inputs: int, hidden: int) -> nn.GRUCell:
    cell = nn.GRUCell(inputs, hidden)
    nn.init.xavier_uniform_(cell.weight_ih)
    nn.init.orthogonal_(cell.weight_hh)
    nn.init.zeros_(cell.bias_ih)
    nn.init.zeros_(cell.bias_hh)
    return cell


def _mlp(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(_linear(inputs, hidden, kaiming=True), nn.ReLU(), _linear(hidden, inputs))


class SlotAttention(RuledModule):
    """Slot attention in which slots and heads compete together.

    Args:
        num_iterations: T, at least 1.
        num_slots: K, for others to read.
        input_size: C, width of the inputs.
        slot_size: D.
        mlp_hidden_size: width of the MLP's hidden layer.
        heads: number of heads, a divisor of D.
        epsilon: added to each attention weight.
        backend: of `emorl.ops.slot_attention`; not in the original.
    """

    fixed = frozenset({"num_heads", "slot_size"})
    epsilon = rule("eps")

    def __init__(
        self,
        num_iterations: int,
        num_slots: int,
        input_size: int,
        slot_size: int,
        mlp_hidden_size: int,
        heads: int,
        epsilon: float = 1e-8,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.num_iterations, self.num_slots, self.num_heads = num_iterations, num_slots, heads
        self.input_size, self.slot_size = input_size, slot_size
        self._rules = SlotRules(
            scale=(slot_size // heads) ** -0.5,
            heads=heads,
            softmax_over="slots_heads",
            eps=epsilon,
            backend=backend,
        )
        self.norm_inputs = nn.LayerNorm(input_size)
        self.norm_slots = nn.LayerNorm(slot_size)
        self.norm_mlp = nn.LayerNorm(slot_size)
        self.project_q = _linear(slot_size, slot_size, bias=False)
        self.project_k = _linear(input_size, slot_size, bias=False)
        self.project_v = _linear(input_size, slot_size, bias=False)
        self.gru = _gru_cell(slot_size, slot_size)
        self.mlp = _mlp(slot_size, mlp_hidden_size)

    def forward(self, inputs: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to inputs [B, N, C] from slots [B, K, D].

        Returns:
            Slots, [B, K, D], and the last iteration's softmax, summed over heads, [B, N, K].
        """
        layers = SlotLayers(
            query=self.project_q,
            key=self.project_k,
            value=self.project_v,
            norm_inputs=self.norm_inputs,
            norm_slots=self.norm_slots,
            gru=self.gru,
            mlp=ResidualMLP(self.norm_mlp, self.mlp),
        )
        found = iterate(
            layers, self._rules, inputs, slots, self.num_iterations, keep_attention="last"
        )
        attention = found.attention[-1]
        return found.slots[-1], (attention if attention.dim() == 3 else attention.sum(2)).mT


class SlotAttentionEncoder(nn.Module):
    """An MLP of the inputs, drawn slots, and slot attention.

    Args:
        num_iterations: T.
        num_slots: K.
        input_channels: C.
        slot_size: D.
        mlp_hidden_size: width of slot attention's MLP.
        pos_channels: not used, as in the original.
        num_heads: number of heads.
        backend: of `emorl.ops.slot_attention`; not in the original.
    """

    def __init__(
        self,
        num_iterations: int,
        num_slots: int,
        input_channels: int,
        slot_size: int,
        mlp_hidden_size: int,
        pos_channels: int,
        num_heads: int,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.num_slots, self.slot_size, self.pos_channels = num_slots, slot_size, pos_channels
        self.layer_norm = nn.LayerNorm(input_channels)
        self.mlp = _mlp(input_channels, input_channels)
        self.slot_mu = nn.Parameter(torch.zeros(1, 1, slot_size))
        self.slot_log_sigma = nn.Parameter(torch.zeros(1, 1, slot_size))
        nn.init.xavier_uniform_(self.slot_mu)
        nn.init.xavier_uniform_(self.slot_log_sigma)
        self.slot_attention = SlotAttention(
            num_iterations,
            num_slots,
            input_channels,
            slot_size,
            mlp_hidden_size,
            num_heads,
            backend=backend,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Slots [B, K, D] and attention [B, N, K] of inputs [B, N, C]."""
        x = self.mlp(self.layer_norm(x))
        slots = drawn(self.slot_mu, self.slot_log_sigma, self.num_slots, x)
        found: tuple[Tensor, Tensor] = self.slot_attention(x, slots)
        return found
