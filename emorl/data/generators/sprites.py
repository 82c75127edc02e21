"""dSprites' shapes: square, ellipse and heart, turned and scaled, on 64 x 64 pixels.

Geometry was fitted to 320 frames of dSprites (Matthey et al., 2017; Apache-2.0, as is the heart's
outline, heart.npy): a pixel belongs to a sprite where its centre lies within the outline.
"""

from __future__ import annotations

from functools import cached_property
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FRAME = 64
SQUARE, ELLIPSE, HEART = 1, 2, 3
_SIDE = 9.6  # half of the square's, in pixels at scale 1
_AXES = (12.8, 7.2)  # half of the ellipse's
_REACH = 14  # pixels from a sprite's own that it may cover: the square's corners are 13.6 away
_CELLS, _EXTENT = 1024, 10.0  # of the heart's table, which covers [-extent, extent]


class Sprites(NamedTuple):
    """Sprites to draw; tensors of one shape [...].

    Attributes:
        shape: 1 square, 2 ellipse, 3 heart; int64.
        scale: 0.5 to 1.
        angle: in radians.
        x: position from left to right, 0 to 1; the centre is at pixel 16 + 32 x.
        y: position from top to bottom.
    """

    shape: Tensor
    scale: Tensor
    angle: Tensor
    x: Tensor
    y: Tensor


class Outlines:
    """The shapes on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @cached_property
    def _heart(self) -> Tensor:
        """Whether the middle of each of the table's cells lies within the heart, bool [cells^2]."""
        middle = ((np.arange(_CELLS) + 0.5) / _CELLS * 2 - 1) * _EXTENT
        inside = np.zeros((_CELLS, _CELLS), bool)
        corners = _heart_outline()
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            rows = (middle >= min(y0, y1)) & (middle < max(y0, y1))
            crossing = x0 + (middle[rows] - y0) / (y1 - y0) * (x1 - x0)
            inside[rows] ^= middle > crossing[:, None]  # an odd number of edges lies to the left
        return torch.from_numpy(inside).ravel().to(self.device)

    def cover(self, sprites: Sprites) -> tuple[Tensor, Tensor]:
        """The pixels around each sprite, and which of them it covers.

        Returns:
            places in the flattened image, int64 [..., P], and bool [..., P].
        """
        step = torch.arange(-_REACH, _REACH + 1, device=self.device)
        center_x, center_y = 16 + 32 * sprites.x, 16 + 32 * sprites.y
        column = center_x.floor().long()[..., None] + step
        row = center_y.floor().long()[..., None] + step
        across = (column + 0.5 - center_x[..., None]).float()[..., None, :]
        down = (row + 0.5 - center_y[..., None]).float()[..., :, None]
        cosine, sine = (
            (f(sprites.angle) / sprites.scale).float()[..., None, None]
            for f in (torch.cos, torch.sin)
        )
        u, v = cosine * across - sine * down, sine * across + cosine * down
        place = row[..., :, None] * FRAME + column[..., None, :]
        return place.flatten(-2), self._inside(sprites.shape, u, v).flatten(-2)

    def _inside(self, shape: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Whether points, in the coordinates of shapes at scale 1, lie within their outlines."""
        shape = shape[..., None, None]
        square = torch.maximum(u.abs(), v.abs()) < _SIDE
        ellipse = (u / _AXES[0]).square() + (v / _AXES[1]).square() < 1
        to_cell = _CELLS / (2 * _EXTENT)
        cell_u, cell_v = (((w + _EXTENT) * to_cell).long().clamp(0, _CELLS - 1) for w in (u, v))
        heart = self._heart.take(cell_v * _CELLS + cell_u)  # the table's rim is empty
        return torch.where(shape == SQUARE, square, torch.where(shape == ELLIPSE, ellipse, heart))


def _heart_outline() -> np.ndarray:
    """The heart's corners at scale 1, float32 [144, 2]: (x, y) in pixels from its position."""
    with resources.files(__package__).joinpath("heart.npy").open("rb") as file:
        corners: np.ndarray = np.load(file)
    return corners
