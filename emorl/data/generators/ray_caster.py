"""Rays against spheres, cylinders, cubes and a curved ground.

Legend: B scenes, K objects of a scene, R rays, of whatever scenes.
"""

from __future__ import annotations

from functools import cached_property
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emorl.data.generators.clevr_scenes import CYLINDER, SPHERE, Scenes

NOTHING, GROUND = -2, -1  # in place of an object's number
_REACH = (0.0, 1.0, 2**0.5, 3**0.5)  # of the shapes' corners, in radii
_NEWTON_STEPS = 6
_SAMPLES = 4096  # of the ground's profile
_FAR = 1e9


class Rays(NamedTuple):
    """Rays.

    Attributes:
        scene: int64 [R].
        origin: float32 [R, 3].
        direction: unit vectors, float32 [R, 3].
        without: the object that they cannot meet: convex, it does not shade or mirror itself;
            int64 [R], or a negative number.
    """

    scene: Tensor
    origin: Tensor
    direction: Tensor
    without: Tensor

    def at(self, distance: Tensor) -> Tensor:
        """The points at these distances, [R, 3]."""
        return self.origin + distance[:, None] * self.direction

    def rows(self, rows: Tensor) -> Rays:
        """Some of the rays."""
        return Rays(*(x.index_select(0, rows) for x in self))


class Objects(NamedTuple):
    """The objects of scenes; absent ones have no size.

    Attributes:
        shape: int64 [B, K].
        center: float32 [B, K, 3].
        radius: float32 [B, K].
        turn: cosine and sine of the angle around z, float32 [B, K, 2].
        reach: distance of the farthest corner from the centre, 0 where there is no object.
    """

    shape: Tensor
    center: Tensor
    radius: Tensor
    turn: Tensor
    reach: Tensor

    @classmethod
    def of(cls, scenes: Scenes) -> Objects:
        """The objects of scenes, which stand on a flat ground."""
        radius = scenes.radius
        reach = radius * radius.new_tensor(_REACH).take(scenes.shape) * scenes.present
        turn = torch.stack([scenes.angle.cos(), scenes.angle.sin()], dim=-1)
        center = torch.cat([scenes.place, radius[..., None]], dim=-1)
        return cls(scenes.shape, *(x.float() for x in (center, radius, turn, reach)))

    def nearest(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """The first object that each ray meets.

        Returns:
            its number, int64 [R], `NOTHING` where there is none; the distance, [R].
        """
        ray, number, entry = self._entries(rays)
        distance = rays.origin.new_full((len(rays.scene), self.shape.shape[1]), _FAR)
        distance[ray, number] = entry
        nearest, which = distance.min(1)
        return torch.where(nearest < _FAR, which, NOTHING), nearest

    def block(self, rays: Rays, distance: Tensor) -> Tensor:
        """Whether each ray meets an object before it has gone a distance, bool [R]."""
        ray, _, entry = self._entries(rays)
        met = entry < distance.index_select(0, ray)
        return torch.zeros_like(distance).index_add_(0, ray, met.float()) > 0

    def _entries(self, rays: Rays) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of a ray and an object that may meet: ray, object, distance (far if they don't)."""
        scene, origin, direction, without = rays
        along = origin.new_zeros(len(scene), self.shape.shape[1])
        squares = torch.zeros_like(along)
        for axis, centers in enumerate(self.center.unbind(-1)):
            apart = of_scenes(centers, scene) - origin[:, axis, None]
            along.addcmul_(apart, direction[:, axis, None])
            squares.addcmul_(apart, apart)
        reach = of_scenes(self.reach, scene)
        near = (squares.addcmul_(along, along, value=-1) < reach * reach) & (along > -reach)
        ray, number = near.nonzero(as_tuple=True)
        kept = (number != without.index_select(0, ray)).nonzero()[:, 0]
        ray, number = ray.index_select(0, kept), number.index_select(0, kept)
        pair = self._flat(scene.index_select(0, ray), number)
        center = self.center.flatten(0, 1).index_select(0, pair)
        local = self._turned(pair, origin.index_select(0, ray) - center)
        turned = self._turned(pair, direction.index_select(0, ray))
        return ray, number, _entry(self.shape.ravel().index_select(0, pair), local, turned)

    def _flat(self, scene: Tensor, number: Tensor) -> Tensor:
        """Where objects are among those of all scenes."""
        return scene * self.shape.shape[1] + number

    def _turned(self, pair: Tensor, vectors: Tensor) -> Tensor:
        """Vectors [P, 3] in the coordinates of objects of radius 1."""
        cosine, sine = self.turn.flatten(0, 1).index_select(0, pair).unbind(-1)
        x, y, z = vectors.unbind(-1)
        turned = torch.stack([cosine * x + sine * y, cosine * y - sine * x, z], dim=-1)
        return turned / self.radius.ravel().index_select(0, pair)[:, None]

    def local(self, scene: Tensor, number: Tensor, points: Tensor) -> Tensor:
        """Points [P, 3] in the coordinates of objects, whose radius is 1 there."""
        pair = self._flat(scene, number)
        return self._turned(pair, points - self.center.flatten(0, 1).index_select(0, pair))

    def normals(self, scene: Tensor, number: Tensor, points: Tensor, bevel: float) -> Tensor:
        """Unit normals [P, 3] at points of objects, whose edges are rounded, in radii."""
        pair = self._flat(scene, number)
        local = self.local(scene, number, points)
        x, y, z = local.unbind(-1)
        round_xy = torch.hypot(x, y).clamp_min(1e-6)
        beyond = 1 - bevel
        cube = local.sign() * (local.abs() - beyond).clamp_min(0)
        side = (round_xy - beyond).clamp_min(0) / round_xy
        cap = z.sign() * (z.abs() - beyond).clamp_min(0)
        cylinder = torch.stack([side * x, side * y, cap], dim=-1)
        shape = self.shape.ravel().index_select(0, pair)[:, None]
        normal = torch.where(shape == SPHERE, local, torch.where(shape == CYLINDER, cylinder, cube))
        cosine, sine = self.turn.flatten(0, 1).index_select(0, pair).unbind(-1)
        x, y, z = normal.unbind(-1)
        normal = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=-1)
        return torch.nn.functional.normalize(normal, dim=-1)


def of_scenes(table: Tensor, scene: Tensor) -> Tensor:
    """The rows of a table [B, ...] for each ray; its only row, where there is but one scene."""
    return table if len(table) == 1 else table.index_select(0, scene)


def _entry(shape: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """Where rays enter shapes of radius 1 around 0: the distance [P], far if they do not."""
    inverse = 1 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
    first = (-1 - origin) * inverse
    second = (1 - origin) * inverse
    enter, leave = torch.minimum(first, second), torch.maximum(first, second)
    # Cylinders are round in x and y alone, spheres in all three.
    product = origin * direction
    along, across = direction * direction, origin * origin
    flat = shape != SPHERE
    a = along[:, 0] + along[:, 1] + along[:, 2].masked_fill(flat, 0)
    b = product[:, 0] + product[:, 1] + product[:, 2].masked_fill(flat, 0)
    c = across[:, 0] + across[:, 1] + across[:, 2].masked_fill(flat, 0) - 1
    a = a.clamp_min(1e-12)
    root = b * b - a * c
    half = root.clamp_min(0).sqrt()
    round_enter = torch.where(root > 0, (-b - half) / a, _FAR)
    round_leave = torch.where(root > 0, (half - b) / a, -_FAR)
    both_enter = torch.maximum(round_enter, enter[:, 2])
    both_leave = torch.minimum(round_leave, leave[:, 2])
    is_round, is_cylinder = shape == SPHERE, shape == CYLINDER
    near = torch.where(is_round, round_enter, torch.where(is_cylinder, both_enter, enter.amax(1)))
    far = torch.where(is_round, round_leave, torch.where(is_cylinder, both_leave, leave.amin(1)))
    return torch.where((near < far) & (near > 0), near, _FAR)


class Ground:
    """CLEVR's backdrop: flat in front, and rising behind, the same along one direction."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @cached_property
    def _profile(self) -> tuple[float, float, Tensor, Tensor, Tensor]:
        """Ends of the way across, heights and slopes along it [_SAMPLES], its direction [2]."""
        with resources.files(__package__).joinpath("clevr_ground.npz").open("rb") as file:
            stored = np.load(file)
            way, height, normal = (stored[name] for name in ("s", "z", "normal"))
        samples = np.linspace(way[0], way[-1], _SAMPLES)
        heights = np.interp(samples, way, height)
        tables = (heights, np.gradient(heights, samples), normal[:2])
        return way[0], way[-1], *(torch.from_numpy(x).float().to(self.device) for x in tables)

    def _at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Height and slope of the ground below points, [R] each."""
        first, last, heights, slopes, across = self._profile
        way = points[:, :2] @ across
        sample = ((way - first) * ((_SAMPLES - 1) / (last - first))).clamp(0, _SAMPLES - 1.001)
        left = sample.long()
        part = sample - left
        height, slope = (
            torch.lerp(x.take(left), x.take(left + 1), part) for x in (heights, slopes)
        )
        return height, slope

    def distance(self, rays: Rays) -> Tensor:
        """Where rays meet the ground, [R]; far where they do not.

        By Newton's method from beyond: the profile is convex, so that it cannot step too far.
        """
        _, last, _, _, across = self._profile
        fall = rays.direction[:, 2]
        toward = rays.direction[:, :2] @ across
        down = torch.where(fall < -1e-4, -rays.origin[:, 2] / fall.clamp_max(-1e-4), _FAR)
        to_end = last - rays.origin[:, :2] @ across
        end = torch.where(toward > 1e-4, to_end / toward.clamp_min(1e-4), _FAR)
        distance = torch.minimum(down, end)
        distance = torch.where(distance < _FAR, distance, 0)
        point = rays.at(distance)
        meets = point[:, 2] <= self._at(point)[0] + 1e-3  # else it passes over the backdrop
        for _ in range(_NEWTON_STEPS):
            point = rays.at(distance)
            height, slope = self._at(point)
            rate = torch.minimum(fall - slope * toward, rays.origin.new_tensor(-1e-3))
            distance = distance - (point[:, 2] - height) / rate
        return torch.where(meets & (distance > 0), distance, _FAR)

    def normals(self, points: Tensor) -> Tensor:
        """Unit normals at points of the ground, [R, 3]."""
        slope = self._at(points)[1]
        across = self._profile[4]
        normal = torch.stack([*(-slope[:, None] * across).unbind(1), torch.ones_like(slope)], dim=1)
        return torch.nn.functional.normalize(normal, dim=1)
