"""Light and materials of CLEVR's scenes: what a ray brings back.

Powers and colours are those of CLEVR's base scene in Blender 4.2 units; radiance is linear, and a
monitor's values follow by `to_srgb`. Rubber is diffuse with a broad sheen, metal mirrors its
surroundings once (in a mirror metal looks like paint) and the lamps by two GGX lobes (Walter et al.
2007). Of the light that surfaces pass on, only the floor's onto objects is there, as if nothing but
the object itself shaded the floor. Rubber's velvet is left out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.data.generators.clevr_scenes import COLORS, METAL, Scenes
from emorl.data.generators.clevr_textures import Textures
from emorl.data.generators.ray_caster import GROUND, NOTHING, Ground, Objects, Rays, of_scenes

PATTERNS = 4  # of places on a lamp; neighbouring pixels take different ones
_WATTS = (78.54, 39.27, 23.56)  # of key, back and fill
_EDGES = (0.5, 1.0, 0.5)  # of these square lamps
_SUN, _SUN_FROM = 0.45, (0.4145, -0.1946, 0.889)  # watts a square metre; a unit vector
_LAMP_COLORS = ((1.0, 0.932, 0.817), (1.0, 1.0, 1.0), (0.762, 0.818, 1.0), (1.0, 1.0, 1.0))
_GROUND_ALBEDO = 0.8
_FROM_FLOOR = 0.5  # of the floor around an object is lit
_BEVEL = 0.12  # of a radius
_SHEEN, _SHEEN_AT_ZERO = 0.348, 0.04  # Beckmann's width; reflectance at normal incidence
_LOBES = ((0.6, 0.01), (0.4, 0.2))  # of metal: share and GGX's width
# By pattern, of which two mirror by each lobe: its share of them, and how far the normal is tilted.
_MIRRORS = ((1.2, 0.0), (1.2, 0.0), (0.8, 0.15), (0.8, -0.15))
_SAMPLES = 2  # of each lamp
# Eight places on a lamp of edge 1; a pattern has one in each half.
_PLACES = tuple(
    ((x + 0.5) / 4 - 0.5, (y + 0.5) / 2 - 0.5) for x, y in
    ((0, 0), (2, 0), (1, 1), (3, 1), (3, 0), (1, 0), (2, 1), (0, 1))
)  # fmt: skip


class World(NamedTuple):
    """Scenes, as rays meet them.

    Attributes:
        objects: of the scenes.
        ground: the same for all of them.
        metal: which objects are of metal, bool [B, K].
        paint: of objects and, last, of the ground: linear, float32 [B, K + 1, 3].
        textures: instead of it, if there are any.
        lamps: of key, back and fill: position, axis and both edges, float32 [B, 3, 4, 3].
        floor: irradiance at the origin, float32 [B, 3].
    """

    objects: Objects
    ground: Ground
    metal: Tensor
    paint: Tensor
    textures: Textures | None
    lamps: Tensor
    floor: Tensor

    @classmethod
    def of(cls, scenes: Scenes, ground: Ground, textures: Textures | None = None) -> World:
        """The world of some scenes."""
        table = torch.tensor([*COLORS.values()], device=ground.device) / 255
        paint = F.pad(table[scenes.color - 1], (0, 0, 0, 1), value=_GROUND_ALBEDO)
        position = scenes.lights.float()
        axis = -F.normalize(position, dim=-1)
        across = F.normalize(
            torch.stack([axis[..., 1], -axis[..., 0], torch.zeros_like(axis[..., 0])], -1), dim=-1
        )
        edges = axis.new_tensor(_EDGES)[:, None]
        up = torch.linalg.cross(across, axis)
        lamps = torch.stack([position, axis, across * edges, up * edges], dim=2)
        away = position.norm(dim=-1)
        power = -axis[..., 2] * away.new_tensor(_WATTS) / (math.pi * away**2)
        power = F.pad(power, (0, 1), value=_SUN * _SUN_FROM[2])
        floor = power @ power.new_tensor(_LAMP_COLORS)
        metal = scenes.material == METAL
        if textures is not None:
            metal = torch.zeros_like(metal)
        return cls(Objects.of(scenes), ground, metal, paint, textures, lamps, floor)

    def meet(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """What each ray meets first: an object's number, `GROUND` or `NOTHING`; the distance."""
        number, distance = self.objects.nearest(rays)
        below = self.ground.distance(rays)
        on_ground = (number == NOTHING) & (below < 1e6)
        # Objects stand on a flat floor: what is a little behind the curved one is seen, too.
        return torch.where(on_ground, GROUND, number), torch.where(on_ground, below, distance)

    def radiance(self, rays: Rays, pattern: Tensor, *, mirrors: bool = True) -> Tensor:
        """What rays bring back, linear [R, 3].

        Args:
            rays: from the camera, or from a mirror.
            pattern: of places on the lamps and of mirrors, 0 to `PATTERNS` - 1, int64 [R]; what
                metal brings back is right on average over all of them.
            mirrors: whether metal mirrors what is around it.
        """
        number, distance = self.meet(rays)
        seen = (number != NOTHING).nonzero()[:, 0]
        light = torch.zeros_like(rays.origin)
        surface = self._surface(rays.rows(seen), number[seen], distance[seen])
        light[seen] = self._shaded(surface, pattern[seen], mirrors)
        return light

    def _surface(self, rays: Rays, number: Tensor, distance: Tensor) -> Surface:
        points = rays.at(distance)
        normals = self.ground.normals(points)
        on = (number >= 0).nonzero()[:, 0]
        scene = rays.scene[on]
        normals[on] = self.objects.normals(scene, number[on], points[on], _BEVEL)
        metal = torch.zeros_like(number, dtype=torch.bool)
        metal[on] = self.metal[scene, number[on]]
        last = self.paint.shape[1] - 1
        which = torch.where(number < 0, last, number)
        if self.textures is None:
            paint = self.paint[rays.scene, which]
        else:
            place = points.clone()
            place[on] = self.objects.local(scene, number[on], points[on])
            paint = self.textures.paint(rays.scene, which, place)
        return Surface(rays.scene, points, normals, -rays.direction, number, metal, paint)

    def _shaded(self, surface: Surface, pattern: Tensor, mirrors: bool) -> Tensor:
        direction, arriving, width = self._arriving(surface, pattern)
        light = surface.paint / math.pi * (arriving.sum(1) + self._from_floor(surface))
        rubber = ((surface.number >= 0) & ~surface.metal).nonzero()[:, 0]
        light[rubber] += _sheen(surface.rows(rubber), direction[rubber], arriving[rubber])
        if mirrors:
            metal = surface.metal.nonzero()[:, 0]
            shining = surface.rows(metal)
            turn = pattern.index_select(0, metal)
            share, tilt = light.new_tensor(_MIRRORS).index_select(0, turn)[..., None].unbind(1)
            mirrored = share * self.radiance(shining.mirrored(tilt), turn, mirrors=False)
            lamps = _highlights(shining, direction[metal], arriving[metal], width[metal])
            light[metal] = shining.paint * (mirrored + lamps)
        return light

    def _arriving(self, surface: Surface, pattern: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Light that arrives at points from the three lamps and the sun.

        Returns:
            unit vectors to the lamps' middles, [R, 4, 3]; irradiance, [R, 4, 3]; half the angle
            that each takes, [R, 4].
        """
        position, axis, *_ = of_scenes(self.lamps, surface.scene).unbind(2)  # [R, 3, 3] each
        way = position - surface.points[:, None]
        away = way.norm(dim=-1)
        direction = way / away[..., None]
        facing = -(direction * axis).sum(-1)
        power = facing.new_tensor(_WATTS) * facing.clamp_min(0) / (math.pi * away**2)
        sun = direction.new_tensor(_SUN_FROM).expand(len(way), 1, 3)
        direction = torch.cat([direction, sun], dim=1)
        slope = (direction * surface.normals[:, None]).sum(-1).clamp_min(0)
        power = F.pad(power, (0, 1), value=_SUN) * slope
        shares = self._shares(surface, pattern, power > 0)
        irradiance = (power * shares)[..., None] * power.new_tensor(_LAMP_COLORS)
        return direction, irradiance, F.pad(power.new_tensor(_EDGES) / (4 * away), (0, 1))

    def _from_floor(self, surface: Surface) -> Tensor:
        """What the floor sends to the undersides of objects, irradiance [R, 3]."""
        down = torch.where(surface.number >= 0, (1 - surface.normals[:, 2]) / 2, 0)
        floor = _GROUND_ALBEDO * _FROM_FLOOR * of_scenes(self.floor, surface.scene)
        return down[:, None] * floor

    def _shares(self, surface: Surface, pattern: Tensor, asked: Tensor) -> Tensor:
        """How much of the lamps and of the sun can be seen, [R, 4], where `asked` is true."""
        seen = torch.zeros_like(asked, dtype=torch.float32)
        places = seen.new_tensor(_PLACES).view(_SAMPLES, PATTERNS, 2)
        for lamp in range(3):
            rows = asked[:, lamp].nonzero()[:, 0]
            points = surface.rows(rows)
            position, _, *edges = of_scenes(self.lamps[:, lamp], points.scene).unbind(1)
            for place in places.index_select(1, pattern.index_select(0, rows)):
                toward = position + place[:, :1] * edges[0] + place[:, 1:] * edges[1]
                seen[rows, lamp] += self._clear(points, toward - points.points) / _SAMPLES
        rows = asked[:, 3].nonzero()[:, 0]
        sun = seen.new_tensor(_SUN_FROM).expand(len(rows), 3)
        seen[rows, 3] = self._clear(surface.rows(rows), 1e6 * sun)
        return seen

    def _clear(self, surface: Surface, way: Tensor) -> Tensor:
        """1 where nothing lies on the way from points to what is seen from them, else 0."""
        away = way.norm(dim=-1)
        rays = Rays(surface.scene, surface.points, way / away[:, None], surface.number)
        return (~self.objects.block(rays, away)).float()


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
        return Surface(*(x.index_select(0, rows) for x in self))

    def mirrored(self, tilt: Tensor) -> Rays:
        """The rays that mirrors, tilted sideways by a tangent [R, 1], would send to the viewer."""
        side = F.normalize(torch.linalg.cross(self.normals, self.viewer), dim=1)
        normals = F.normalize(self.normals + tilt * side, dim=1)
        cosine = (self.viewer * normals).sum(1, keepdim=True)
        direction = F.normalize(2 * cosine * normals - self.viewer, dim=1)
        return Rays(self.scene, self.points, direction, self.number)


def _angles(surface: Surface, direction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cosines: normal and halfway vector, viewer and that, normal and viewer, normal and light."""
    half = F.normalize(direction + surface.viewer[:, None], dim=-1)
    normal = surface.normals[:, None]
    of_half = (half * normal).sum(-1).clamp(1e-3, 1)
    between = (half * surface.viewer[:, None]).sum(-1).clamp(1e-3, 1)
    to_viewer = (surface.viewer * surface.normals).sum(-1, keepdim=True).clamp_min(0.05)
    to_light = (direction * normal).sum(-1).clamp_min(0.05)
    return of_half, between, to_viewer, to_light


def _sheen(surface: Surface, direction: Tensor, arriving: Tensor) -> Tensor:
    """Light that rubber mirrors, [R, 3]: Beckmann's distribution, Fresnel by Schlick."""
    of_half, between, to_viewer, to_light = _angles(surface, direction)
    square = of_half**2
    spread = torch.exp((square - 1) / (square * _SHEEN**2)) / (math.pi * _SHEEN**2 * square**2)
    fresnel = _SHEEN_AT_ZERO + (1 - _SHEEN_AT_ZERO) * (1 - between) ** 5
    share = spread * fresnel / (4 * torch.maximum(to_viewer, to_light))
    return (share[..., None] * arriving).sum(1)


def _highlights(surface: Surface, direction: Tensor, arriving: Tensor, width: Tensor) -> Tensor:
    """Light of the lamps that metal mirrors, [R, 3], as wide as lamps and lobes are together."""
    of_half, _, to_viewer, to_light = _angles(surface, direction)
    share = torch.zeros_like(of_half)
    for weight, lobe in _LOBES:
        square = lobe**2 + width**2
        share += weight * square / (math.pi * (of_half**2 * (square - 1) + 1) ** 2)
    share = share / (4 * torch.maximum(to_viewer, to_light))
    return (share[..., None] * arriving).sum(1)


def to_srgb(linear: Tensor) -> Tensor:
    """Linear light to a monitor's values, both cut to [0, 1]."""
    linear = linear.clamp(0, 1)
    curved = 1.055 * linear.clamp_min(1e-6) ** (1 / 2.4) - 0.055
    return torch.where(linear < 0.0031308, 12.92 * linear, curved)
