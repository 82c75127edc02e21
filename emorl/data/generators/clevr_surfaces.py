"""Points of CLEVR's surfaces, and the light that their materials mirror.

Legend: R points; vectors are [3, R].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from emorl.data.generators.ray_caster import Rays, unit

_SHEEN, _SHEEN_AT_ZERO = 0.348, 0.04  # Beckmann's width; reflectance at normal incidence
_LOBES = ((0.6, 0.01), (0.4, 0.2))  # of metal: share and GGX's width


class Surface(NamedTuple):
    """Points of surfaces: their scene, place, normal, the way to the viewer, object and paint."""

    scene: Tensor
    points: Tensor
    normals: Tensor
    viewer: Tensor
    number: Tensor
    metal: Tensor
    paint: Tensor

    def rows(self, rows: Tensor) -> Surface:
        """Some of the points."""
        return Surface(*(x.index_select(-1, rows) for x in self))

    def mirrored(self, tilt: Tensor) -> Rays:
        """The rays that mirrors, tilted sideways by a tangent [R], would send to the viewer."""
        side = unit(torch.linalg.cross(self.normals, self.viewer, dim=0))
        normals = unit(torch.addcmul(self.normals, tilt, side))
        cosine = (self.viewer * normals).sum(0)
        direction = unit(2 * cosine * normals - self.viewer)
        return Rays(self.scene, self.points, direction, self.number)


def _angles(surface: Surface, direction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cosines: normal and halfway vector, viewer and that, normal and viewer, normal and light."""
    half = unit(direction + surface.viewer[:, None])
    normal = surface.normals[:, None]
    of_half = (half * normal).sum(0).clamp_(1e-3, 1)
    between = (half * surface.viewer[:, None]).sum(0).clamp_(1e-3, 1)
    to_viewer = (surface.viewer * surface.normals).sum(0).clamp_min_(0.05)
    to_light = (direction * normal).sum(0).clamp_min_(0.05)
    return of_half, between, to_viewer, to_light


def sheen(surface: Surface, direction: Tensor, arriving: Tensor) -> Tensor:
    """Light that rubber mirrors, [3, R]: Beckmann's distribution, Fresnel by Schlick."""
    of_half, between, to_viewer, to_light = _angles(surface, direction)
    square = of_half**2
    spread = torch.exp((square - 1) / (square * _SHEEN**2)) / (math.pi * _SHEEN**2 * square**2)
    fresnel = _SHEEN_AT_ZERO + (1 - _SHEEN_AT_ZERO) * (1 - between) ** 5
    share = spread * fresnel / (4 * torch.maximum(to_viewer, to_light))
    return (share * arriving).sum(1)


def highlights(surface: Surface, direction: Tensor, arriving: Tensor, width: Tensor) -> Tensor:
    """Light of the lamps that metal mirrors, [3, R], as wide as lamps and lobes are together."""
    of_half, _, to_viewer, to_light = _angles(surface, direction)
    share = torch.zeros_like(of_half)
    for weight, lobe in _LOBES:
        square = lobe**2 + width**2
        share += weight * square / (math.pi * (of_half**2 * (square - 1) + 1) ** 2)
    share = share / (4 * torch.maximum(to_viewer, to_light))
    return (share * arriving).sum(1)
