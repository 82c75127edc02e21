"""Solid textures for objects and ground: what a point's place says about its colour.

None is ClevrTex's, whose photographs cannot be made: checks, bricks, wood, stripes and clouds of
two random colours each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from emorl.data import random

KINDS = ("checks", "bricks", "wood", "stripes", "clouds")
_CELLS = 16  # of the noise's lattice, along each side
_MORTAR = 0.16  # of a brick
_OF_GROUND = 0.4  # of an object's number of periods: the ground is seen from farther away
_OF_SURFACE = 10  # random numbers


class Textures(NamedTuple):
    """The textures of scenes' surfaces, S of them: those of objects and, last, the ground's.

    Attributes:
        kind: 0 and up, as in `KINDS`, int64 [B, S].
        colors: linear, float32 [B, S, 2, 3].
        scale: how many periods there are in a length of 1, float32 [B, S].
        shift: of the texture's middle, float32 [B, S, 3].
        lattice: random numbers in [0, 1), float32 [cells^3].
    """

    kind: Tensor
    colors: Tensor
    scale: Tensor
    shift: Tensor
    lattice: Tensor

    @classmethod
    def draw(cls, state: Tensor, surfaces: int) -> Textures:
        """Textures for scenes with these random states, int64 [B]."""
        number = torch.arange(surfaces, device=state.device)
        draws = torch.arange(_OF_SURFACE, device=state.device)
        bits = random.fold(state[:, None, None], number[:, None] * _OF_SURFACE + draws)
        values = random.uniform(bits).float()
        colors = values[..., :6].unflatten(-1, (2, 3)) ** 2  # so that dark ones are as frequent
        cell = torch.arange(_CELLS**3, device=state.device)
        lattice = random.uniform(random.fold(torch.zeros_like(cell), cell)).float()
        scale = 1.0 + values[..., 6]
        scale[:, -1] *= _OF_GROUND
        return cls(random.below(bits[..., 9], len(KINDS)), colors, scale, values[..., :3], lattice)

    def paint(self, scene: Tensor, surface: Tensor, places: Tensor) -> Tensor:
        """The colours of points.

        Args:
            scene: int64 [R].
            surface: number in the scene, int64 [R].
            places: on the surface, in its own coordinates, [R, 3].
        """
        pair = scene, surface
        where = places * self.scale[pair][:, None] + self.shift[pair]
        share = torch.zeros_like(where[:, 0])
        for number, pattern in enumerate((_checks, _bricks, self._wood, _stripes, self._clouds)):
            rows = (self.kind[pair] == number).nonzero()[:, 0]
            share[rows] = pattern(where[rows])
        first, second = self.colors[pair].unbind(1)
        return torch.lerp(first, second, share[:, None])

    def _wood(self, where: Tensor) -> Tensor:
        """Rings around z, bent by noise."""
        x, y, _ = where.unbind(1)
        rings = 2 * torch.hypot(x, y) + 2 * self._noise(where)
        return rings.frac() ** 2

    def _clouds(self, where: Tensor) -> Tensor:
        """Noise of three octaves."""
        octaves = [self._noise(where * 2.0**n) / 2.0**n for n in range(1, 4)]
        return (sum(octaves[1:], octaves[0]) * 1.6 - 0.2).clamp(0, 1)

    def _noise(self, where: Tensor) -> Tensor:
        """Smooth noise in [0, 1], of one value for each cell's corner."""
        corner = where.floor()
        part = where - corner
        part = part * part * (3 - 2 * part)
        corner = corner.long()
        values = torch.zeros_like(part[:, 0])
        for steps in torch.cartesian_prod(*[torch.arange(2, device=where.device)] * 3):
            cell = (corner + steps).remainder(_CELLS)
            weight = torch.where(steps > 0, part, 1 - part).prod(1)
            x, y, z = cell.unbind(1)
            values += weight * self.lattice.take((x * _CELLS + y) * _CELLS + z)
        return values


def _checks(where: Tensor) -> Tensor:
    # Moved a little, so that faces in the middle of a coordinate lie on one side.
    return (2 * where + 1e-3).floor().sum(1).remainder(2)


def _bricks(where: Tensor) -> Tensor:
    """Rows of bricks along z, each moved by half of one; 1 between them."""
    row = 3 * where[:, 2] + 1e-3
    along = 1.5 * (where[:, 0] + where[:, 1]) + row.floor().remainder(2) / 2
    mortar = (row - row.floor() < _MORTAR) | (along - along.floor() < _MORTAR / 2)
    return mortar.float()


def _stripes(where: Tensor) -> Tensor:
    return (0.5 + 3 * torch.sin(6 * (where[:, 0] + where[:, 2] / 2))).clamp(0, 1)
