"""The grouping module of videosaur and slotcontrast (martius-lab, MIT) with our operator.

Constructor, call, keys and shapes of the state dict and first weights are theirs; outputs and
gradients differ by rounding. What differs: a second derivative needs `backend="reference"`, and
there is no public method `step`.
"""

from __future__ import annotations

from torch import Tensor, nn

from emorl.compat.rules import RuledModule, rule
from emorl.nn.slot_iterations import SlotLayers, SlotRules, iterate
from emorl.ops import Backend


class _ResidualMLP(nn.Module):
    """x + MLP(LN(x)), whose layers are `layers.0`, `.1` and `.3`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """As in the formula."""
        refined: Tensor = x + self.layers(x)
        return refined


class SlotAttention(RuledModule):
    """Slot attention whose GRU moves the normalised slots.

    Args:
        inp_dim: C, width of the features.
        slot_dim: D.
        kvq_dim: width of queries, keys and values; None for D.
        hidden_dim: width of the MLP's hidden layer; None for 4 D.
        n_iters: iterations, at least 1.
        eps: added to each attention weight.
        use_gru: else updates are added to the normalised slots.
        use_mlp: whether there is an MLP.
        backend: of `emorl.ops.slot_attention`; not in the package.
    """

    eps, scale = rule("eps"), rule("scale")

    def __init__(
        self,
        inp_dim: int,
        slot_dim: int,
        kvq_dim: int | None = None,
        hidden_dim: int | None = None,
        n_iters: int = 3,
        eps: float = 1e-8,
        use_gru: bool = True,
        use_mlp: bool = True,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        width = kvq_dim or slot_dim
        if n_iters < 1:
            raise ValueError(f"SlotAttention: n_iters: expected at least 1, got {n_iters}")
        if not use_gru and width != slot_dim:
            raise ValueError(f"SlotAttention: kvq_dim: expected {slot_dim}, got {width}")
        self.n_iters = n_iters
        self._rules = SlotRules(scale=width**-0.5, eps=eps, gru_state="normalised", backend=backend)
        self.to_k = nn.Linear(inp_dim, width, bias=False)
        self.to_v = nn.Linear(inp_dim, width, bias=False)
        self.to_q = nn.Linear(slot_dim, width, bias=False)
        self.gru = nn.GRUCell(width, slot_dim) if use_gru else None
        self.mlp = _ResidualMLP(slot_dim, hidden_dim or 4 * slot_dim) if use_mlp else None
        self.norm_features = nn.LayerNorm(inp_dim)
        self.norm_slots = nn.LayerNorm(slot_dim)

    def forward(
        self, slots: Tensor, features: Tensor, n_iters: int | None = None
    ) -> dict[str, Tensor]:
        """Attend to features [B, N, C] from slots [B, K, D].

        Returns:
            `slots` [B, K, D] and `masks` [B, K, N], the last iteration's softmax.
        """
        layers = SlotLayers(
            query=self.to_q,
            key=self.to_k,
            value=self.to_v,
            norm_inputs=self.norm_features,
            norm_slots=self.norm_slots,
            gru=self.gru,
            mlp=self.mlp,
        )
        times = self.n_iters if n_iters is None else n_iters
        found = iterate(layers, self._rules, features, slots, times, keep_attention="last")
        return {"slots": found.slots[-1], "masks": found.attention[-1]}
