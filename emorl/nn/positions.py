"""Where a pixel is: learned maps of ramps, and coordinates.

Legend: C channels of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emorl.nn.arguments import Size, require
from emorl.nn.layers import is_plain
from emorl.ops.library import full_precision


def position_ramps(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Distances to the bottom, top, left and right edge, in [0, 1].

    Args:
        height: rows of the grid.
        width: columns of the grid.
        device: where they are made.

    Returns:
        [4, height, width]: 1 - row, row, column, 1 - column (the released code's order).

    Raises:
        ValueError: if a side is not a whole number of 1 or more.
    """
    require("position_ramps", int, 1, height=height, width=width)
    return _ramps(height, width, device)


def _ramps(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """`position_ramps`, also of a traced size."""
    down, right = (torch.linspace(0, 1, side, device=device) for side in (height, width))
    up, left = (torch.linspace(1, 0, side, device=device) for side in (height, width))
    rows = [ramp[:, None].expand(height, width) for ramp in (up, down)]
    columns = [ramp.expand(height, width) for ramp in (right, left)]
    return torch.stack(rows + columns)


class PositionMap(nn.Module):
    """A learned linear map of the position ramps, one map for the whole batch.

    Args:
        width: channels of the map.
        grid: (height, width) whose ramps are kept; other sizes are made at every call.

    Raises:
        ValueError: if a number is not a whole one of 1 or more.
    """

    ramps: Tensor

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        require("PositionMap", int, 1, width=width)
        require("PositionMap", Size, 1, grid=grid)
        super().__init__()
        self.project = nn.Linear(4, width)
        self.register_buffer("ramps", position_ramps(*grid), persistent=False)

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the map's weights."""
        self.project.weight.mul_(factor)

    def forward(self, height: int, width: int) -> Tensor:
        """The position map of a grid, [C, height, width]."""
        ramps = self.ramps
        if ramps.shape[1:] != (height, width):
            ramps = _ramps(height, width, ramps.device).to(ramps.dtype)
        with full_precision(ramps):
            if not is_plain(self.project, nn.Linear):
                projected: Tensor = self.project(ramps.permute(1, 2, 0))
                return projected.permute(2, 0, 1)
            weighted = torch.einsum("cr,rhw->chw", self.project.weight, ramps)
        bias = self.project.bias
        return weighted if bias is None else weighted + bias[:, None, None]


class CoordinateGrid(nn.Module):
    """x and y of every pixel, from -1 to 1, with nothing to learn.

    Args:
        grid: (height, width) whose coordinates are kept; other sizes are made at every call.
    """

    coordinates: Tensor

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("coordinates", _coordinates(*grid), persistent=False)

    def forward(self, height: int, width: int) -> Tensor:
        """x, then y, of a grid, [2, height, width]."""
        kept = self.coordinates
        if kept.shape[1:] == (height, width):
            return kept
        return _coordinates(height, width, kept.device).to(kept.dtype)


def _coordinates(height: int, width: int, device: torch.device | None = None) -> Tensor:
    sides = (torch.linspace(-1, 1, side, device=device) for side in (height, width))
    y, x = torch.meshgrid(*sides, indexing="ij")
    return torch.stack((x, y))
