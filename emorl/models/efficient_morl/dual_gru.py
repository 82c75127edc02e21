"""Recurrent updates of a Gaussian's parameters.

Legend: M slots of a batch, D slot width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emorl.nn.initialisation import init_xavier
from emorl.nn.posterior import Gaussian


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
