"""Rounded solids against a search along each ray in float64, which knows their inside alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emorl.data.generators import solids
from emorl.data.generators.clevr_scenes import CUBE, CYLINDER, SPHERE
from emorl.data.generators.solids import FAR

RAYS = 10_000
BEVELS = {CUBE: 0.25, CYLINDER: 0.075}

each_shape = pytest.mark.parametrize("shape", BEVELS, ids={CUBE: "cube", CYLINDER: "cylinder"}.get)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def level(shape: int, points: np.ndarray) -> np.ndarray:
    """Convex, 0 on the surface, negative inside; from 0.8 of the distance to all of it outside."""
    x, y, z = points
    sides = np.stack((np.hypot(x, y), z) if shape == CYLINDER else (x, y, z))
    beyond = np.maximum(np.abs(sides) - (1 - BEVELS[shape]), 0)
    return np.cbrt((beyond**3).sum(0)) - BEVELS[shape]


def searched(
    shape: int, origin: np.ndarray, direction: np.ndarray, far: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where unit rays enter a solid before they have gone `far`, and their least level."""

    def at(along: np.ndarray) -> np.ndarray:
        return level(shape, origin + along * direction)

    low, high = np.zeros(origin.shape[1]), np.full(origin.shape[1], far)
    for _ in range(150):  # a convex function's least value lies beside the lower of two points
        left, right = low + (high - low) * 0.4, low + (high - low) * 0.6
        falls = at(left) > at(right)
        low, high = np.where(falls, left, low), np.where(falls, high, right)
    inside, outside = (low + high) / 2, np.zeros_like(low)
    least = at(inside)
    for _ in range(60):
        middle = (outside + inside) / 2
        is_out = at(middle) > 0
        outside, inside = np.where(is_out, middle, outside), np.where(is_out, inside, middle)
    return inside, least


def on_surface(shape: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points of faces, edges and corners alike, and their unit normals, [3, RAYS] each."""
    bevel, sides = BEVELS[shape], 2 if shape == CYLINDER else 3
    rounded = rng.permuted(np.arange(sides)[:, None] <= rng.integers(0, sides, RAYS), axis=0)
    beyond = np.where(rounded, np.abs(rng.normal(size=rounded.shape)) + 1e-3, 0)
    beyond *= bevel / np.cbrt((beyond**3).sum(0))
    flat = rng.uniform(0, 1 - bevel, rounded.shape)
    point, normal = np.where(rounded, 1 - bevel + beyond, flat), beyond**2
    if shape == CYLINDER:
        angle = rng.uniform(0, 2 * np.pi, RAYS)
        around = np.stack([np.cos(angle), np.sin(angle), np.ones(RAYS)])
        point, normal = (around * x[[0, 0, 1]] for x in (point, normal))
    sign = rng.choice([-1, 1], size=(3, RAYS))
    return sign * point, unit(sign * normal)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=0)


def entered(shape: int, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    rays = (torch.from_numpy(x).float() for x in (origin, direction))
    return solids.entry(torch.full((origin.shape[1],), shape), *rays).double().numpy()


def test_search_knows_the_measured_shapes() -> None:
    """Middles of a corner, an edge and a face of SmoothCube_v2; of SmoothCylinder's rim, nearly."""
    for point in ([0.92334] * 3, [0.94843, 0.94843, 0.2], [1.0, 0.7, -0.3]):
        assert abs(level(CUBE, np.array(point))) < 2e-5
    for point in ([0.99697, 0, 0.9586], [0.98378, 0, 0.9891], [0, 0.96452, 0.998]):
        assert abs(level(CYLINDER, np.array(point))) < 3e-3


@each_shape
@pytest.mark.parametrize("away", [3.0, 20.0])
def test_rays_enter_where_a_search_enters(
    shape: int, away: float, rng: np.random.Generator
) -> None:
    origin = away * unit(rng.normal(size=(3, RAYS)))
    direction = unit(rng.uniform(-1.5, 1.5, (3, RAYS)) - origin)
    origin, direction = (x.astype(np.float32).astype(float) for x in (origin, direction))
    found = entered(shape, origin, direction)
    expected, least = searched(shape, origin, direction, 2 * away)
    hits = found < FAR
    assert 0.3 < hits.mean() < 0.9
    assert not hits[least > 2e-3].any()
    assert hits[least < -1e-5].all()
    clear = hits & (least < -0.01)
    assert clear.sum() > 0.3 * RAYS
    assert np.abs(found - expected)[clear].max() < 1e-4 * away
    assert np.abs(level(shape, origin + found * direction))[hits].max() < 1.1e-3


@each_shape
@pytest.mark.parametrize("away", [3.0, 30.0])
def test_grazing_rays_hit_and_miss_as_their_offset_says(
    shape: int, away: float, rng: np.random.Generator
) -> None:
    points, normal = on_surface(shape, rng)
    assert np.abs(level(shape, points)).max() < 1e-12
    tangent = unit(np.cross(rng.normal(size=(RAYS, 3)), normal.T).T)
    for offset, hit in ((-5e-4, True), (2e-3, False)):
        origin = points + offset * normal - away * tangent
        assert ((entered(shape, origin, tangent) < FAR) == hit).all(), offset


@each_shape
def test_rays_may_begin_between_rounded_and_sharp_edges(
    shape: int, rng: np.random.Generator
) -> None:
    points, normal = on_surface(shape, rng)
    origin = points + 0.005 * normal
    x, y, z = np.abs(origin)
    sides = (np.hypot(x, y), z) if shape == CYLINDER else (x, y, z)
    within = np.max(sides, axis=0) < 0.999
    assert within.sum() > RAYS / 20
    into = unit(rng.normal(size=(3, RAYS)))
    into *= np.sign(-(into * normal).sum(0))
    expected, least = searched(shape, origin, into, 4.0)
    found = entered(shape, origin, into)
    clear = within & (least < -0.01)
    assert clear.sum() > RAYS / 40
    assert np.abs(found - expected)[clear].max() < 1e-4
    assert (found[within & (least > 2e-3)] == FAR).all()
    assert (entered(shape, origin, -into)[within] == FAR).all()
    assert (entered(shape, points - 0.005 * normal, into) == FAR).all(), "they begin in it"


@pytest.mark.parametrize("shape", [SPHERE, CYLINDER, CUBE])
def test_length_of_directions_is_the_unit_of_distances(
    shape: int, rng: np.random.Generator
) -> None:
    origin = 5 * unit(rng.normal(size=(3, 100)))
    found = entered(shape, origin, -origin)
    assert np.allclose(entered(shape, origin, -4 * origin) * 4, found, rtol=1e-6)
    assert (found < 1).all()
    assert (entered(shape, origin, origin) == FAR).all()


def normals_of(shape: int, points: np.ndarray) -> np.ndarray:
    number = torch.full((points.shape[1],), shape)
    return unit(solids.normals(number, torch.from_numpy(points).float()).double().numpy())


@each_shape
def test_normals_are_the_slope_of_the_surface(shape: int, rng: np.random.Generator) -> None:
    """On faces, edges and corners, by central differences of the level."""
    points, normal = on_surface(shape, rng)
    step = 1e-6 * np.eye(3)[:, :, None]
    slope = unit(np.stack([level(shape, points + x) - level(shape, points - x) for x in step]))
    assert np.abs(slope - normal).max() < 1e-3
    assert np.abs(normals_of(shape, points) - normal).max() < 1e-3


def test_normals_of_spheres_are_their_points(rng: np.random.Generator) -> None:
    around = unit(rng.normal(size=(3, 50)))
    assert np.allclose(normals_of(SPHERE, around), around, atol=1e-6)


@each_shape
def test_reach_is_that_of_the_farthest_point(shape: int, rng: np.random.Generator) -> None:
    farthest = np.linalg.norm(on_surface(shape, rng)[0], axis=0).max()
    assert farthest < solids.REACH[shape] < 1.01 * farthest
