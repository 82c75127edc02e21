"""What autocast must leave alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast does nothing on the device of `like`.

    For what computes with slots, positions and gradients: it costs little beside the networks over
    pixels, and bfloat16's 8 bits are too few for recurrent states, variances and divergences. A
    narrow tensor that comes from such a network is to be converted inside.
    """
    device = like.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
