"""The refinement network (stage 2 of EfficientMORL)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.nn.initialisation import init_xavier
from emorl.nn.posterior import Gaussian
from emorl.ops.library import full_precision


class RefinementNetwork(nn.Module):
    """Maps a posterior and its loss gradient to an additive update (Emami et al. 2021, 3.2).

    As in the released code the layer norms of the gradients have no parameters, and the raw
    variance's update passes no softplus (the paper says otherwise on both).

    Args:
        dim: D, width of a slot.
        hidden: width of the hidden layer.
    """

    def __init__(self, dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.dim = dim
        self.hidden = nn.Linear(4 * dim, hidden)
        self.encoded = nn.Linear(hidden, dim)
        self.mean = nn.Linear(dim, dim)
        self.raw = nn.Linear(dim, dim)
        init_xavier(self)
        self.cell = nn.GRUCell(dim, dim)  # keeps PyTorch's initialisation

    def forward(
        self, posterior: Gaussian, gradient: Gaussian, state: Tensor | None
    ) -> tuple[Gaussian, Tensor]:
        """One refinement step.

        Args:
            posterior: [M, D].
            gradient: of the loss with respect to the posterior's mean and raw variance, [M, D]
                each, without a graph.
            state: recurrent state, [M, D]; None for zeros, at first.

        Returns:
            The update to add to the posterior, and the next state.
        """
        with full_precision(posterior.mean):
            normalised = [F.layer_norm(g, (self.dim,)) for g in gradient]
            encoded = self.encoded(F.elu(self.hidden(torch.cat([*posterior, *normalised], dim=1))))
            state = self.cell(encoded, state)
            return Gaussian(self.mean(state), self.raw(state)), state
