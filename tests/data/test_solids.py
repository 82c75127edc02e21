"""Rounded cubes against a search along each ray in float64, which knows their inside alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from emorl.data.generators import solids
from emorl.data.generators.clevr_scenes import CUBE, CYLINDER, SPHERE
from emorl.data.generators.solids import FAR

RNG = np.random.default_rng(0)
RAYS = 20_000
FLAT, BEVEL = 0.75, 0.25


def level(points: np.ndarray) -> np.ndarray:
    """Convex, 0 on the cube's surface, negative in it; within a fifth of the distance near it."""
    return np.cbrt((np.maximum(np.abs(points) - FLAT, 0) ** 3).sum(0)) - BEVEL


def searched(origin: np.ndarray, direction: np.ndarray, far: float) -> tuple[np.ndarray, ...]:
    """Where unit rays enter the cube, and the least level on their way."""
    low, high = np.zeros(origin.shape[1]), np.full(origin.shape[1], far)
    for _ in range(120):  # a convex function's minimum lies beside the lower of two points
        left, right = low + (high - low) * 0.4, low + (high - low) * 0.6
        falls = level(origin + left * direction) > level(origin + right * direction)
        low, high = np.where(falls, left, low), np.where(falls, high, right)
    deepest = (low + high) / 2
    outside, inside = np.zeros_like(deepest), deepest
    for _ in range(60):
        middle = (outside + inside) / 2
        is_out = level(origin + middle * direction) > 0
        outside, inside = np.where(is_out, middle, outside), np.where(is_out, inside, middle)
    return inside, level(origin + deepest * direction)


def on_surface() -> tuple[np.ndarray, np.ndarray]:
    """Points of faces, edges and corners alike, and unit normals, [3, RAYS] each."""
    rounded = np.sort(RNG.random((3, RAYS)), 0).argsort(0) <= RNG.integers(0, 3, RAYS)
    rounded = RNG.permuted(rounded, axis=0)
    beyond = np.where(rounded, np.abs(RNG.normal(size=(3, RAYS))) + 1e-3, 0)
    beyond *= BEVEL / np.cbrt((beyond**3).sum(0))
    sign = np.sign(RNG.normal(size=(3, RAYS)))
    points = np.where(rounded, sign * (FLAT + beyond), RNG.uniform(-FLAT, FLAT, (3, RAYS)))
    normal = np.where(rounded, sign * beyond**2, 0)
    return points, normal / np.linalg.norm(normal, axis=0)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=0)


def entered(origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    rays = (torch.from_numpy(x).float() for x in (origin, direction))
    return solids.entry(torch.full((origin.shape[1],), CUBE), *rays).double().numpy()


def test_oracle_has_the_measured_shape() -> None:
    """Middles of a corner, an edge and a face of SmoothCube_v2, whose half edge is 1."""
    for point in ([0.92334] * 3, [0.94843, 0.94843, 0.2], [1.0, 0.7, -0.3]):
        assert abs(level(np.array(point))) < 2e-5


@pytest.mark.parametrize("away", [3.0, 20.0])
def test_cubes_are_entered_where_a_search_enters_them(away: float) -> None:
    origin = away * unit(RNG.normal(size=(3, RAYS)))
    origin = origin.astype(np.float32).astype(float)
    direction = unit(RNG.uniform(-1.5, 1.5, (3, RAYS)) - origin).astype(np.float32).astype(float)
    found = entered(origin, direction)
    expected, least = searched(origin, direction, 2 * away)
    hits = found < FAR
    assert 0.3 < hits.mean() < 0.9
    assert not hits[least > 2e-3].any()
    assert hits[least < -1e-5].all()
    clear = hits & (least < -0.01)
    assert clear.sum() > 0.3 * RAYS
    assert np.abs(found - expected)[clear].max() < 1e-4 * away
    reached = level(origin + found * direction)[hits]
    assert np.abs(reached).max() < 1.1e-3


@pytest.mark.parametrize("away", [3.0, 30.0])
def test_grazing_rays_hit_and_miss_as_their_offset_says(away: float) -> None:
    points, normal = on_surface()
    assert np.abs(level(points)).max() < 1e-12
    tangent = unit(np.cross(RNG.normal(size=(RAYS, 3)), normal.T).T)
    for offset, hit in ((-5e-4, True), (2e-3, False)):
        origin = points + offset * normal - away * tangent
        assert ((entered(origin, tangent) < FAR) == hit).all(), offset


def test_rays_may_begin_between_rounded_and_sharp_edges() -> None:
    points, normal = on_surface()
    origin = points + 0.02 * normal
    within = np.abs(origin).max(0) < 0.999
    assert within.sum() > RAYS / 5
    into = unit(RNG.normal(size=(3, RAYS)))
    into *= np.sign(-(into * normal).sum(0))
    expected, least = searched(origin, into, 4.0)
    clear = within & (least < -0.01)
    assert clear.sum() > RAYS / 10
    assert np.abs(entered(origin, into) - expected)[clear].max() < 1e-4
    assert (entered(origin, into)[within & (least > 2e-3)] == FAR).all()
    assert (entered(origin, -into)[within] == FAR).all()
    assert (entered(points - 0.01 * normal, into) == FAR).all(), "they begin in it"


def test_length_of_directions_is_the_unit_of_distances() -> None:
    origin = 5 * unit(RNG.normal(size=(3, 100)))
    found = entered(origin, -origin)
    assert np.allclose(entered(origin, -4 * origin) * 4, found, rtol=1e-6)
    assert (found < 1).all()
    assert (entered(origin, origin) == FAR).all()


def normals_of(shape: int, points: np.ndarray) -> Tensor:
    number = torch.full((points.shape[1],), shape)
    normal = solids.normals(number, torch.from_numpy(points).float())
    return normal / normal.norm(dim=0)


def test_normals_are_the_slope_of_the_surface() -> None:
    """By central differences of the level; on faces, edges and corners."""
    points, _ = on_surface()
    step = 1e-6 * np.eye(3)[:, :, None]
    slope = [level(points + x) - level(points - x) for x in step]
    found = normals_of(CUBE, points).double().numpy()
    assert np.abs(found - unit(np.stack(slope))).max() < 1e-4


def test_normals_of_spheres_and_cylinders() -> None:
    around = unit(RNG.normal(size=(3, 50)))
    assert np.allclose(normals_of(SPHERE, around), around, atol=1e-6)
    wall = np.stack([around[0], around[1], 0 * around[2]])
    wall = unit(wall)
    height = np.array([[0], [0], [0.5]])
    assert np.allclose(normals_of(CYLINDER, wall + height), wall, atol=1e-6)
    top = np.array([[0.3], [-0.4], [1.0]])
    assert np.allclose(normals_of(CYLINDER, top), [[0], [0], [1]], atol=1e-6)


def test_reach_is_that_of_the_farthest_point() -> None:
    points, _ = on_surface()
    farthest = np.linalg.norm(points, axis=0).max()
    assert farthest < solids.REACH[CUBE] < 1.01 * farthest
