"""The first slots that several packages draw, in their order of random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from emorl.nn.arguments import require
from emorl.nn.slot_iterations import OWNER


def drawn(mean: Tensor, log_sigma: Tensor, num_slots: int, like: Tensor) -> Tensor:
    """Slots [B, K, D] of one Gaussian, by one call of `torch.randn`.

    Args:
        mean: [1, 1, D].
        log_sigma: [1, 1, D].
        num_slots: K.
        like: [B, ...], whose dtype and device the noise has.

    Raises:
        ValueError: if K is no whole number of 1 or more.
    """
    require(OWNER, int, 1, num_slots=num_slots)
    shape = (len(like), num_slots, mean.shape[2])
    noise = torch.randn(shape, device=like.device, dtype=like.dtype)
    return mean + log_sigma.exp() * noise
