"""Random numbers that are the same each time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def normals(dtype: torch.dtype, device: torch.device | str) -> Callable[..., Tensor]:
    """A function that draws normal numbers of the shape it is called with.

    They are drawn in float64 on the CPU: the same for every dtype and device, but for rounding. On
    the device "meta" there are only shapes.
    """
    if torch.device(device).type == "meta":
        return lambda *shape: torch.empty(shape, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return normal
