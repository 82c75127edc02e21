"""Light and materials of CLEVR's scenes: what a ray brings back.

Powers and colours are those of CLEVR's base scene in Blender 4.2 units; radiance is linear, and a
monitor's values follow by `to_srgb`. Rubber is diffuse with a broad sheen, metal mirrors its
surroundings once (in a mirror metal looks like paint) and the lamps by two GGX lobes (Walter et al.
2007). Of the light that surfaces pass on, only the floor's onto objects is there, as if nothing but
the object itself shaded the floor. Rubber's velvet is left out.

Legend: B scenes, K objects of a scene, R rays or the points that they meet; vectors are [3, R].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.data.generators.clevr_scenes import COLORS, METAL, Scenes
from emorl.data.generators.clevr_surfaces import Surface, highlights, sheen
from emorl.data.generators.clevr_textures import Textures
from emorl.data.generators.ray_caster import (
    GROUND,
    NOTHING,
    Ground,
    Objects,
    Rays,
    columns,
    of_scenes,
    unit,
)

PATTERNS = 4  # of places on a lamp; neighbouring pixels take different ones
_SUN, _SUN_FROM = 0.45, (0.4145, -0.1946, 0.889)  # watts a square metre; a unit vector
_SUN_AWAY = 1e6
_WATTS = (78.54, 39.27, 23.56, _SUN * math.pi * _SUN_AWAY**2)  # of key, back, fill and sun
_EDGES = (0.5, 1.0, 0.5, 0.0)  # of these square lamps
_LAMP_COLORS = ((1.0, 0.932, 0.817), (1.0, 1.0, 1.0), (0.762, 0.818, 1.0), (1.0, 1.0, 1.0))
_GROUND_ALBEDO = 0.8
_FROM_FLOOR = 0.5  # of the floor around an object is lit
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
        camera: where it is, float32 [B, 3].
        metal: which objects are of metal and, last, the ground, which is not, bool [B, K + 1].
        paint: of objects and, last, of the ground: linear, float32 [3, B * (K + 1)].
        textures: instead of it, if there are any.
        lamps: position, axis and both edges of key, back, fill and sun, float32 [3, 4, 4, B].
        floor: irradiance at the origin, float32 [3, B].
    """

    objects: Objects
    ground: Ground
    camera: Tensor
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
        position = scenes.lights.float().permute(2, 1, 0)  # [3, lamps, B]
        sun = position.new_tensor(_SUN_FROM)[:, None, None].expand(3, 1, len(scenes.lights))
        position = torch.cat([position, _SUN_AWAY * sun], dim=1)
        axis = -unit(position)
        across = unit(torch.stack([axis[1], -axis[0], torch.zeros_like(axis[0])]))
        edges = axis.new_tensor(_EDGES)[:, None]
        up = torch.linalg.cross(across, axis, dim=0)
        lamps = torch.stack([position, axis, across * edges, up * edges], dim=1)
        watts = axis.new_tensor(_WATTS)[:, None]
        power = -axis[2] * watts / (math.pi * (position * position).sum(0))
        floor = (power.new_tensor(_LAMP_COLORS).mT[..., None] * power).sum(1)
        metal = F.pad(scenes.material == METAL, (0, 1))
        if textures is not None:
            metal = torch.zeros_like(metal)
        paint = paint.flatten(0, 1).mT.contiguous()
        camera = scenes.camera.float()
        return cls(Objects.of(scenes), ground, camera, metal, paint, textures, lamps, floor)

    def meet(self, rays: Rays, apex: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What each ray meets first: an object's number, `GROUND` or `NOTHING`; the distance.

        `apex` is that of `Objects.nearest`.
        """
        number, distance = self.objects.nearest(rays, apex)
        # Objects stand on a flat floor: what is a little behind the curved one is seen, too.
        free = (number == NOTHING).nonzero()[:, 0]
        below = self.ground.distance(rays.rows(free))
        number.index_copy_(0, free, torch.where(below < 1e6, GROUND, NOTHING))
        return number, distance.index_copy_(0, free, below)

    def radiance(self, rays: Rays, pattern: Tensor, *, mirrors: bool = True) -> Tensor:
        """What rays bring back, linear [3, R].

        Args:
            rays: any rays.
            pattern: of places on the lamps and of mirrors, 0 to `PATTERNS` - 1, int64 [R]; what
                metal brings back is right on average over all of them.
            mirrors: whether metal mirrors what is around it.
        """
        return self.shade(rays, *self.meet(rays), pattern, mirrors=mirrors)

    def shade(
        self, rays: Rays, number: Tensor, distance: Tensor, pattern: Tensor, *, mirrors: bool = True
    ) -> Tensor:
        """What rays bring back from what they meet, the answer of `meet`; as `radiance`."""
        seen = (number != NOTHING).nonzero()[:, 0]
        light = torch.zeros_like(rays.origin)
        rays, number, distance, pattern = (
            rays.rows(seen),
            *(x.index_select(0, seen) for x in (number, distance, pattern)),
        )
        surface = self._surface(rays, number, distance)
        return light.index_copy_(1, seen, self._shaded(surface, pattern, mirrors))

    def _surface(self, rays: Rays, number: Tensor, distance: Tensor) -> Surface:
        points = rays.at(distance)
        normals = self.ground.normals(points)
        on = (number >= 0).nonzero()[:, 0]
        scene, which, places = (x.index_select(-1, on) for x in (rays.scene, number, points))
        normals.index_copy_(1, on, self.objects.normals(scene, which, places))
        surfaces = self.metal.shape[1]
        which = torch.where(number < 0, surfaces - 1, number)
        owner = rays.scene * surfaces + which
        if self.textures is None:
            paint = self.paint.index_select(1, owner)
        else:
            places = points.index_copy(1, on, self.objects.local(scene, number[on], places))
            paint = self.textures.paint(rays.scene, which, places.mT).mT
        metal = self.metal.take(owner)
        return Surface(rays.scene, points, normals, -rays.direction, number, metal, paint)

    def _shaded(self, surface: Surface, pattern: Tensor, mirrors: bool) -> Tensor:
        direction, arriving, width = self._arriving(surface, pattern)
        light = surface.paint / math.pi * (arriving.sum(1) + self._from_floor(surface))
        rubber = ((surface.number >= 0) & ~surface.metal).nonzero()[:, 0]
        from_lamps = (columns(x, rubber) for x in (direction, arriving))
        light.index_add_(1, rubber, sheen(surface.rows(rubber), *from_lamps))
        if mirrors:
            metal = surface.metal.nonzero()[:, 0]
            shining, turn = surface.rows(metal), pattern.index_select(0, metal)
            share, tilt = light.new_tensor(_MIRRORS).mT.index_select(1, turn)
            mirrored = share * self.radiance(shining.mirrored(tilt), turn, mirrors=False)
            from_lamps = (columns(x, metal) for x in (direction, arriving, width))
            lamps = highlights(shining, *from_lamps)
            light.index_copy_(1, metal, shining.paint * (mirrored + lamps))
        return light

    def _arriving(self, surface: Surface, pattern: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Light that arrives at points from the lamps.

        Returns:
            unit vectors to the lamps' middles, [3, 4, R]; irradiance, [3, 4, R]; half the angle
            that each takes, [4, R].
        """
        position, axis = of_scenes(self.lamps[:, :2], surface.scene).unbind(1)  # [3, 4, R] each
        direction = position - surface.points[:, None]
        nearness = (direction * direction).sum(0).rsqrt_()
        direction *= nearness
        power = (direction * axis).sum(0).neg_().clamp_min_(0).mul_(nearness).mul_(nearness)
        power *= power.new_tensor(_WATTS)[:, None] / math.pi
        power *= (direction * surface.normals[:, None]).sum(0).clamp_min_(0)
        power *= self._shares(surface, direction, pattern, power > 0)
        width = nearness * (nearness.new_tensor(_EDGES)[:, None] / 4)
        return direction, power * power.new_tensor(_LAMP_COLORS).mT[..., None], width

    def _from_floor(self, surface: Surface) -> Tensor:
        """What the floor sends to the undersides of objects, irradiance [3, R]."""
        down = torch.where(surface.number >= 0, (1 - surface.normals[2]) / 2, 0)
        return down * (_GROUND_ALBEDO * _FROM_FLOOR * of_scenes(self.floor, surface.scene))

    def _shares(
        self, surface: Surface, direction: Tensor, pattern: Tensor, asked: Tensor
    ) -> Tensor:
        """How much of each lamp can be seen, [4, R], where `asked` is true.

        Rays are cast only where an object is in the way to a lamp's middle, or nearly so.
        """
        found = [self._in_the_way(surface, direction[:, lamp], lamp) for lamp in range(len(asked))]
        number, point = (torch.cat(x) for x in zip(*found, strict=True))
        lamp = torch.cat([torch.full_like(x, lamp) for lamp, (x, _) in enumerate(found)])
        place = lamp * len(pattern) + point
        kept = asked.ravel().index_select(0, place).nonzero()[:, 0]
        number, point, lamp, place = (x.index_select(0, kept) for x in (number, point, lamp, place))
        scene, points, turn = (
            x.index_select(-1, point) for x in (surface.scene, surface.points, pattern)
        )
        met = self._blocked(scene, points, number, self._ways(scene, points, lamp, turn))
        hidden = torch.zeros(_SAMPLES, asked.numel(), device=met.device)
        hidden.index_add_(1, place, met.float())
        return 1 - (hidden > 0).float().mean(0).view_as(asked)

    def _in_the_way(self, surface: Surface, to: Tensor, lamp: int) -> tuple[Tensor, Tensor]:
        """Pairs of an object and a point from which it may hide a lamp.

        An object of height h stands so far below a lamp at height z that what moves the lamp's end
        of a ray by d moves the ray by d h / z at most, where it is beside the object.

        Args:
            surface: the points.
            to: unit vectors from them to the lamp's middle, [3, R].
            lamp: its number.

        Returns:
            the object's number and the point, int64 [P] each.
        """
        if not _EDGES[lamp]:
            return self.objects.pairs(Rays(surface.scene, surface.points, to, surface.number))
        middle = self.lamps[:, 0, lamp]  # [3, B]
        corner = max(math.hypot(*place) for place in _PLACES) * _EDGES[lamp]
        share = 2 * self.objects.center[..., 2] / (middle[2, :, None] - corner)
        back = Rays(surface.scene, surface.points, -to, surface.number)
        return self.objects.pairs(back, middle.mT, corner * share.clamp(0, 1))

    def _ways(self, scene: Tensor, points: Tensor, lamp: Tensor, pattern: Tensor) -> Tensor:
        """From points [3, P] to a pattern's places on lamps, [3, _SAMPLES, P]."""
        lamps = columns(self.lamps.flatten(2), lamp * self.lamps.shape[-1] + scene)
        position, _, *edges = lamps.unbind(1)
        places = position.new_tensor(_PLACES).view(_SAMPLES, PATTERNS, 2).index_select(1, pattern)
        way = (position - points)[:, None]
        for edge, along in zip(edges, places.unbind(-1), strict=True):
            way = torch.addcmul(way, edge[:, None], along)
        return way

    def _blocked(self, scene: Tensor, points: Tensor, number: Tensor, way: Tensor) -> Tensor:
        """Whether objects [P] are met on the ways from points, bool [_SAMPLES, P]."""
        away = (way * way).sum(0).sqrt_()
        number = number.repeat(_SAMPLES)
        origin = points.repeat(1, _SAMPLES)
        rays = Rays(scene.repeat(_SAMPLES), origin, (way / away).flatten(1), number)
        return self.objects.entry(rays, number).view_as(away) < away


def to_srgb(linear: Tensor) -> Tensor:
    """Linear light to a monitor's values, both cut to [0, 1]."""
    linear = linear.clamp(0, 1)
    curved = 1.055 * linear.clamp_min(1e-6) ** (1 / 2.4) - 0.055
    return torch.where(linear < 0.0031308, 12.92 * linear, curved)
