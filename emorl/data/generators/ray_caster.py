"""Rays against the objects of scenes and a curved ground.

Legend: B scenes, K objects of a scene, R rays, of whatever scenes, P pairs of a ray and an object.
Points and vectors are [3, R], so that each coordinate is contiguous.
"""

from __future__ import annotations

from functools import cached_property
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emorl.data.generators import solids
from emorl.data.generators.clevr_scenes import Scenes
from emorl.data.generators.solids import FAR

NOTHING, GROUND = -2, -1  # in place of an object's number
_NEWTON_STEPS = 8  # onto the ground
_FLAT = 1e-4  # so little above it or below, a ray is there after one more step
_SAMPLES = 4096  # of the ground's profile


class Rays(NamedTuple):
    """Rays.

    Attributes:
        scene: int64 [R].
        origin: float32 [3, R].
        direction: unit vectors, float32 [3, R].
        without: the object that they cannot meet: convex, it does not shade or mirror itself;
            int64 [R], or a negative number.
    """

    scene: Tensor
    origin: Tensor
    direction: Tensor
    without: Tensor

    def at(self, distance: Tensor) -> Tensor:
        """The points at these distances, [3, R]."""
        return torch.addcmul(self.origin, distance, self.direction)

    def rows(self, rows: Tensor) -> Rays:
        """Some of the rays."""
        return Rays(*(x.index_select(-1, rows) for x in self))


class Objects(NamedTuple):
    """The objects of scenes; absent ones have no size.

    Attributes:
        shape: int64 [B, K].
        center: float32 [B, K, 3].
        frame: cosine and sine of the angle around z, and 1, over the radius, float32 [B, K, 3].
        reach: distance of the farthest point from the centre, 0 where there is no object.
    """

    shape: Tensor
    center: Tensor
    frame: Tensor
    reach: Tensor

    @classmethod
    def of(cls, scenes: Scenes) -> Objects:
        """The objects of scenes, which stand on a flat ground."""
        radius = scenes.radius
        reach = radius * radius.new_tensor(solids.REACH).take(scenes.shape) * scenes.present
        frame = torch.stack([scenes.angle.cos(), scenes.angle.sin(), torch.ones_like(radius)], -1)
        center = torch.cat([scenes.place, radius[..., None]], dim=-1)
        return cls(scenes.shape, *(x.float() for x in (center, frame / radius[..., None], reach)))

    def nearest(self, rays: Rays, apex: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first object that each ray meets.

        Args:
            rays: any rays.
            apex: where all rays of a scene begin, [B, 3], if they do: less work.

        Returns:
            its number, int64 [R], `NOTHING` where there is none; the distance, [R].
        """
        number, ray = self.pairs(rays, apex)
        entry = self.entry(rays.rows(ray), number)
        nearest = torch.full_like(rays.direction[0], FAR).scatter_reduce_(0, ray, entry, "amin")
        others = (entry > nearest.index_select(0, ray)) | (entry >= FAR)
        which = torch.full_like(rays.scene, NOTHING)
        which.scatter_reduce_(0, ray, number.masked_fill(others, NOTHING), "amax")
        return which, nearest

    def pairs(
        self, rays: Rays, apex: Tensor | None = None, wider: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pairs of an object and a ray that meets the ball around it.

        Args:
            rays: any rays.
            apex: where all rays of a scene begin, [B, 3], instead of their origins.
            wider: what the balls' radii grow by, [B, K].

        Returns:
            the object's number and the ray, int64 [P] each.
        """
        scene, origin, direction, without = rays
        center = self.center.permute(2, 1, 0)  # [3, K, B]
        reach = self.reach if wider is None else torch.where(self.reach > 0, self.reach + wider, 0)
        if apex is None:
            axis, limit = _cones(of_scenes(center, scene), of_scenes(reach.mT, scene), origin)
        else:
            cones = _cones(center, reach.mT, apex.mT)
            axis, limit = (of_scenes(x, scene) for x in cones)
        along = axis[0] * direction[0]
        along.addcmul_(axis[1], direction[1]).addcmul_(axis[2], direction[2])
        number, ray = (along > limit).nonzero(as_tuple=True)
        kept = (number != without.index_select(0, ray)).nonzero()[:, 0]
        return number.index_select(0, kept), ray.index_select(0, kept)

    def entry(self, rays: Rays, number: Tensor) -> Tensor:
        """Where rays enter objects of their scenes: the distance [P], `FAR` if they do not."""
        pair = self._flat(rays.scene, number)
        local = self._turned(pair, rays.origin - _column(self.center, pair))
        turned = self._turned(pair, rays.direction)
        return solids.entry(self.shape.take(pair), local, turned)

    def _flat(self, scene: Tensor, number: Tensor) -> Tensor:
        """Where objects are among those of all scenes."""
        return scene * self.shape.shape[1] + number

    def _turned(self, pair: Tensor, vectors: Tensor) -> Tensor:
        """Vectors [3, P] in the coordinates of objects of radius 1."""
        cosine, sine, scale = _column(self.frame, pair)
        x, y, z = vectors
        return torch.stack([cosine * x + sine * y, cosine * y - sine * x, scale * z])

    def local(self, scene: Tensor, number: Tensor, points: Tensor) -> Tensor:
        """Points [3, P] in the coordinates of objects, whose radius is 1 there."""
        pair = self._flat(scene, number)
        return self._turned(pair, points - _column(self.center, pair))

    def normals(self, scene: Tensor, number: Tensor, points: Tensor) -> Tensor:
        """Unit normals [3, P] at points of objects."""
        pair = self._flat(scene, number)
        x, y, z = solids.normals(self.shape.take(pair), self.local(scene, number, points))
        cosine, sine, scale = _column(self.frame, pair)
        return unit(torch.stack([cosine * x - sine * y, sine * x + cosine * y, scale * z]))


def _cones(center: Tensor, reach: Tensor, apex: Tensor) -> tuple[Tensor, Tensor]:
    """Cones around balls of centres [3, K, N] and radii [K, N], from points [3, N].

    Returns:
        axis [3, K, N] and limit [K, N]: a ray of direction v meets the ball if axis . v > limit.
    """
    axis = center - apex[:, None]
    gap = (axis * axis).sum(0) - reach * reach
    limit = torch.where(gap > 0, gap.clamp_min(0).sqrt(), -FAR)  # in a ball every ray meets it
    return axis, torch.where(reach > 0, limit, FAR)


def _column(table: Tensor, pair: Tensor) -> Tensor:
    """What a table [B, K, 3] has for objects among those of all scenes, [3, P]."""
    return table.flatten(0, 1).mT.contiguous().index_select(1, pair)


def of_scenes(table: Tensor, scene: Tensor) -> Tensor:
    """The columns of a table [..., B] for rays; its only column, where there is but one scene."""
    return table if table.shape[-1] == 1 else columns(table, scene)


def columns(table: Tensor, which: Tensor) -> Tensor:
    """Some columns of a table [..., N]; PyTorch takes 6 times as long for three dimensions."""
    return table.flatten(0, -2).index_select(1, which).view(*table.shape[:-1], len(which))


def unit(vectors: Tensor) -> Tensor:
    """Vectors [3, ...] of length 1 and the same direction."""
    return vectors * (vectors * vectors).sum(0).clamp_min(1e-24).rsqrt()


class _Profile(NamedTuple):
    """The ground's heights at samples of the way across.

    Attributes:
        first: where the first sample is.
        last: where the last one is.
        scale: samples in a length of 1.
        heights: float32 [_SAMPLES].
        rises: from each sample to the next.
        slopes: smooth ones, for normals.
        across: the way's direction, x and y.
    """

    first: float
    last: float
    scale: float
    heights: Tensor
    rises: Tensor
    slopes: Tensor
    across: tuple[float, float]


class Ground:
    """CLEVR's backdrop: flat in front, and rising behind, the same along one direction."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @cached_property
    def _profile(self) -> _Profile:
        with resources.files(__package__).joinpath("clevr_ground.npz").open("rb") as file:
            stored = np.load(file)
            way, height, normal = (stored[name] for name in ("s", "z", "normal"))
        samples = np.linspace(way[0], way[-1], _SAMPLES)
        heights = np.interp(samples, way, height)
        tables = heights, np.diff(heights, append=heights[-1]), np.gradient(heights, samples)
        first, last = float(way[0]), float(way[-1])
        scale = (_SAMPLES - 1) / (last - first)
        a, b, c = (torch.from_numpy(x).float().to(self.device) for x in tables)
        return _Profile(first, last, scale, a, b, c, (float(normal[0]), float(normal[1])))

    def _across(self, vectors: Tensor) -> Tensor:
        """How far vectors [3, R] go across, [R]."""
        x, y = self._profile.across
        return x * vectors[0] + y * vectors[1]

    def _sample(self, way: Tensor) -> tuple[Tensor, Tensor]:
        """The sample before points on the way across, int64 [R], and what is left, 0 to 1."""
        sample = way.sub(self._profile.first).mul_(self._profile.scale)
        left = sample.clamp_(0, _SAMPLES - 1.001).long()
        return left, sample.sub_(left)

    def distance(self, rays: Rays) -> Tensor:
        """Where rays meet the ground, [R]; far where they do not.

        By Newton's method from beyond: the profile is convex, so that it cannot step too far.
        """
        fall, high = rays.direction[2], rays.origin[2]
        toward, way = self._across(rays.direction), self._across(rays.origin)
        down = (-high / fall.clamp_max(-1e-4)).masked_fill_(fall >= -1e-4, FAR)
        to_end = (self._profile.last - way) / toward.clamp_min(1e-4)
        distance = torch.minimum(down, to_end.masked_fill_(toward <= 1e-4, FAR))
        distance.masked_fill_(distance >= FAR, 0)
        line = torch.stack([high, fall, way, toward])
        above, distance = self._nearer(line, distance)
        meets = above <= 1e-3  # else it passes over the backdrop
        above, distance = self._nearer(line, distance)
        rows = (above.abs() > _FLAT).nonzero()[:, 0]  # the rest is there, or will be by a step
        line, rising = line.index_select(1, rows), distance.index_select(0, rows)
        for _ in range(_NEWTON_STEPS - 2):
            _, rising = self._nearer(line, rising)
        distance.index_copy_(0, rows, rising)
        return distance.masked_fill_(~meets | (distance <= 0), FAR)

    def _nearer(self, line: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """How high rays are above the ground at distances, and where they meet its tangent.

        Of rays [4, R] are given height, fall, place on the way across and movement on it.
        """
        high, fall, way, toward = line
        left, rest = self._sample(torch.addcmul(way, distance, toward))
        rise = self._profile.rises.take(left)
        above = torch.addcmul(high, distance, fall) - self._profile.heights.take(left)
        above.addcmul_(rise, rest, value=-1)
        rate = torch.addcmul(fall, rise, toward, value=-self._profile.scale).clamp_max_(-1e-3)
        return above, torch.addcdiv(distance, above, rate, value=-1)

    def normals(self, points: Tensor) -> Tensor:
        """Unit normals at points of the ground, [3, R]."""
        left, rest = self._sample(self._across(points))
        slopes = self._profile.slopes
        slope = torch.lerp(slopes.take(left), slopes.take(left + 1), rest)
        x, y = self._profile.across
        return unit(torch.stack([-x * slope, -y * slope, torch.ones_like(slope)]))
