"""What slots are before the first iteration of slot attention.

Legend: B batch, K slots, D slot width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from emorl.nn.arguments import require
from emorl.nn.posterior import Gaussian, standard_normal

Spread = Literal["exp", "softplus"]


class SampledSlots(nn.Module):
    """Slots drawn from one Gaussian, whose mean and spread are learned and shared by all slots.

    With "exp" the standard deviation is exp(raw), and mean and raw start as Glorot uniform
    (Locatello et al. 2020); with "softplus" the variance is softplus(raw) + 1e-5, and they start
    as 0 and 1 (Emami et al. 2021, in the Slot Attention that they compare with).

    Args:
        dim: D.
        spread: from raw to the standard deviation.

    Raises:
        ValueError: if an argument is not possible.
    """

    def __init__(self, dim: int, spread: Spread = "exp") -> None:
        require("SampledSlots", int, 1, dim=dim)
        require("SampledSlots", Spread, spread=spread)
        super().__init__()
        self.spread = spread
        self.mean = nn.Parameter(torch.zeros(1, dim))
        self.raw = nn.Parameter(torch.ones(1, dim))
        if spread == "exp":
            nn.init.xavier_uniform_(self.mean)
            nn.init.xavier_uniform_(self.raw)

    def forward(self, batch: int, num_slots: int, generator: torch.Generator | None) -> Tensor:
        """Draw [B, K, D], from the global generator if there is none."""
        scale = self.raw.exp() if self.spread == "exp" else Gaussian(self.mean, self.raw).scale
        like = self.mean.expand(batch, num_slots, -1)
        return torch.addcmul(self.mean, scale, standard_normal(like, generator))


class LearnedSlots(nn.Module):
    """One learned vector for each slot, Glorot uniform at first, and no noise.

    Args:
        num_slots: K.
        dim: D.

    Raises:
        ValueError: if a number is not a whole one of 1 or more.
    """

    def __init__(self, num_slots: int, dim: int) -> None:
        require("LearnedSlots", int, 1, num_slots=num_slots, dim=dim)
        super().__init__()
        self.slots = nn.Parameter(torch.empty(num_slots, dim))
        nn.init.xavier_uniform_(self.slots)

    def forward(self, batch: int, num_slots: int, generator: torch.Generator | None) -> Tensor:
        """The vectors, [B, K, D].

        Raises:
            ValueError: if another number of slots is requested.
        """
        if num_slots != len(self.slots):
            raise ValueError(
                f"num_slots: each initial slot was learned, expected {len(self.slots)}, "
                f"got {num_slots}"
            )
        return self.slots.expand(batch, -1, -1)
