"""Spheres, and cylinders and cubes with rounded edges: where rays enter them, and their normals.

Solids have radius 1 and stand upright around 0, in coordinates of their own. Legend: P pairs of a
ray and a solid. Points and vectors are [3, P], so that each coordinate is contiguous.

The cube is SmoothCube_v2 of clevr-dataset-gen: with e = max(|p| - 0.75, 0), coordinate by
coordinate, its surface is where ex^3 + ey^3 + ez^3 = 0.25^3 (all 3,752 vertices of the mesh lie
within 6e-7 of it, and the middles of its facets up to 3e-4 inside). The cylinder's rim is such a
curve in the plane of the axis, of 0.075; SmoothCylinder's, which is not quite round, lies within
0.0026 of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.data.generators.clevr_scenes import CUBE, SPHERE

FAR = 1e9
_BEVEL, _RIM = 0.25, 0.075  # how far edges of cubes and cylinders are rounded, in radii
# Farthest points, in radii, by shape; a little more, since they are compared in float32.
REACH = (
    *(0.0, 1.001),
    1.001 * (2**0.5 * (1 - _RIM) + 2 ** (1 / 6) * _RIM),
    1.001 * (3**0.5 * (1 - _BEVEL) + 3 ** (1 / 6) * _BEVEL),
)
_STEPS = 6
_TOUCHES = 1e-3  # radii
_Sizes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def entry(shape: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """Where rays enter solids.

    Args:
        shape: as in `Scenes`, int64 [P].
        origin: of the rays, float32 [3, P].
        direction: of any length, [3, P].

    Returns:
        The distance in units of the direction's length, [P]; `FAR` where a ray does not enter: it
        misses the solid, or begins in it or beyond.
    """
    enter, leave = _slabs(origin, direction)
    round_enter, round_leave = _round(shape, origin, direction)
    is_sphere, is_cube = shape == SPHERE, shape == CUBE
    both_enter = torch.maximum(round_enter, enter[2])
    both_leave = torch.minimum(round_leave, leave[2])
    near = torch.where(is_sphere, round_enter, torch.where(is_cube, enter.amax(0), both_enter))
    far = torch.where(is_sphere, round_leave, torch.where(is_cube, leave.amin(0), both_leave))
    # Between rounded edges and sharp ones there is room for a ray's origin.
    met = (near < far) & (torch.where(is_sphere, near, far) > 0)
    near.masked_fill_(~met, FAR)
    for rows, sizes, bevel in (
        ((met & is_cube).nonzero()[:, 0], _cube, _BEVEL),
        ((met & ~(is_cube | is_sphere)).nonzero()[:, 0], _cylinder, _RIM),
    ):
        rays = origin.index_select(1, rows), direction.index_select(1, rows)
        start = near.index_select(0, rows)
        near.index_copy_(0, rows, _enter_rounded(sizes, bevel, *rays, start))
    return near


def _slabs(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the slabs |x| < 1, |y| < 1 and |z| < 1, [3, P] each."""
    inverse = direction.masked_fill(direction.abs() < 1e-9, 1e-9).reciprocal_()
    middle, half = (origin * inverse).neg_(), inverse.abs()
    return middle - half, middle + half


def _round(shape: Tensor, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave unit spheres, or unit cylinders without ends, [P] each."""
    upright = (shape == SPHERE).float()  # cylinders are round in x and y alone
    a, b, c = (
        torch.addcmul(x[0] * y[0], x[1], y[1]).addcmul_(x[2] * y[2], upright)
        for x, y in ((direction, direction), (origin, direction), (origin, origin))
    )
    a = a.clamp_min_(1e-12)
    root = (b * b).addcmul_(a, c - 1, value=-1)
    misses = root <= 0
    half = root.clamp_min_(0).sqrt_().div_(a)
    middle = b.div_(a).neg_()
    return (middle - half).masked_fill_(misses, FAR), (middle + half).masked_fill_(misses, -FAR)


def _enter_rounded(
    sizes: _Sizes, bevel: float, origin: Tensor, direction: Tensor, start: Tensor
) -> Tensor:
    """Where rays enter a cube or cylinder with rounded edges, [P], or `FAR`.

    Its sizes s are |x|, |y| and |z|, or the distance from the axis and |z|: convex functions along
    a ray, and so are the positive parts e of s - (1 - r), f, the sum of e^3, less r^3, and the body
    f <= 0 itself (r is the bevel; near the body f / (3 r^2) is the distance in radii). Newton's
    steps t <- t - f / f', begun at the sharp solid, where f >= 0, never pass the first zero of a
    convex function. On a face they are there at once, elsewhere they converge quadratically; if the
    ray only touches the body, f falls with each step to a quarter or, beside a face, where the zero
    is threefold, to 8/27: from 2 r / 3 radii to 1.1e-4 in six steps. A ray that misses comes to
    f' >= 0, from where the next step leads away for good. What is farther than `_TOUCHES` in the
    end is a miss, so the outline is right to 0.001 radii: a hundredth of a pixel of a large object
    in 96x96 pixels.

    Args:
        sizes: of points, and how fast they grow along rays.
        bevel: how far edges are rounded, in radii.
        origin: of the rays, [3, P].
        direction: of any length, [3, P].
        start: where they enter the sharp solid, [P]; negative if they begin in it.
    """
    distance = start
    for _ in range(_STEPS):
        gap, slope = _level(*sizes(torch.addcmul(origin, distance, direction), direction), bevel)
        slope.clamp_max_(-1e-4 * bevel**2)
        distance = distance.addcdiv(gap, slope, value=-1 / 3).clamp_max_(FAR)
    gap, _ = _level(*sizes(torch.addcmul(origin, distance, direction), direction), bevel)
    met = (gap < 3 * bevel**2 * _TOUCHES) & (distance > 0)
    return distance.masked_fill_(~met, FAR)


def _level(size: Tensor, rate: Tensor, bevel: float) -> tuple[Tensor, Tensor]:
    """`_enter_rounded`'s f, and a third of its derivative along rays, [P] each."""
    beyond = size.sub_(1 - bevel).clamp_min_(0)
    square = beyond * beyond
    slope = rate.mul_(square).sum(0)
    return beyond.mul_(square).sum(0).sub_(bevel**3), slope


def _cube(point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    return point.abs(), point.sign().mul_(direction)


def _cylinder(point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    x, y, z = point
    away = torch.hypot(x, y).clamp_min_(1e-6)
    rate = (x * direction[0]).addcmul_(y, direction[1]).div_(away)
    return torch.stack([away, z.abs()]), torch.stack([rate, z.sign().mul_(direction[2])])


def normals(shape: Tensor, point: Tensor) -> Tensor:
    """Outward normals, of any length, at points of solids, [3, P]."""
    x, y, z = point
    away = torch.hypot(x, y).clamp_min(1e-6)
    side = F.softshrink(away, 1 - _RIM).square() / away
    cap = F.softshrink(z, 1 - _RIM)
    cylinder = torch.stack([side * x, side * y, cap * cap.abs()])
    beyond = F.softshrink(point, 1 - _BEVEL)
    cube = beyond * beyond.abs()
    return torch.where(shape == SPHERE, point, torch.where(shape == CUBE, cube, cylinder))
