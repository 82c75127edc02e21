"""Rays among objects and ground: what is left out makes no difference, and the ground is found."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch
from torch import Tensor

from emorl.data import Clevr
from emorl.data.generators.clevr import _crop_rays
from emorl.data.generators.clevr_light import PATTERNS, World
from emorl.data.generators.clevr_scenes import Scenes
from emorl.data.generators.clevr_surfaces import Surface
from emorl.data.generators.ray_caster import GROUND, Ground, Rays, unit
from emorl.data.generators.solids import FAR

SIZE = 40


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Clevr(10, seed=5).scenes(torch.arange(3))


@pytest.fixture(scope="module")
def world(scenes: Scenes) -> World:
    return World.of(scenes, Ground(torch.device("cpu")))


@pytest.fixture(scope="module")
def rays(scenes: Scenes) -> Rays:
    return _crop_rays(scenes.camera, SIZE, offsets=[(0.5, 0.5)])


@pytest.fixture(scope="module")
def surface(world: World, rays: Rays) -> Surface:
    return world._surface(rays, *world.meet(rays, world.camera))


def met_by_trying_all(world: World, rays: Rays) -> Tensor:
    """Where each ray enters each object that is there, [K, R]; its own is none."""
    there = world.objects.reach > 0
    distances = []
    for number in range(there.shape[1]):
        every = torch.full_like(rays.scene, number)
        met = world.objects.entry(rays, every)
        possible = there[:, number].take(rays.scene) & (rays.without != number)
        distances.append(met.masked_fill(~possible, FAR))
    return torch.stack(distances)


def test_first_hits_are_those_of_trying_all_objects(
    world: World, rays: Rays, surface: Surface
) -> None:
    mirrored = surface.mirrored(torch.zeros_like(rays.origin[0]))
    for some, apex in ((rays, world.camera), (rays, None), (mirrored, None)):
        number, distance = world.objects.nearest(some, apex)
        expected, which = met_by_trying_all(world, some).min(0)
        assert torch.equal(distance, expected)
        hit = expected < FAR
        assert 0.03 * len(hit) < hit.sum() < 0.9 * len(hit)
        assert torch.equal(number[hit], which[hit])
        assert (number[~hit] < 0).all()


def test_a_crop_without_objects_is_ground_alone(scenes: Scenes) -> None:
    empty = scenes._replace(present=torch.zeros_like(scenes.present))
    image, label = Clevr(10, size=SIZE).render(empty, torch.arange(3))
    assert not label.any()
    assert image.min() > 50
    assert image.max() < 200


def test_absent_objects_are_in_no_pair(world: World) -> None:
    """Not even with rays that begin at their centres."""
    scene, number = (world.objects.reach == 0).nonzero(as_tuple=True)
    assert len(scene) > 3
    center = world.objects.center[scene, number].mT
    rays = Rays(scene, center, unit(torch.ones_like(center)), torch.full_like(scene, -3))
    for wider in (None, torch.ones_like(world.objects.reach)):
        found, ray = world.objects.pairs(rays, wider=wider)
        assert (found != number[ray]).all()
        assert (world.objects.reach[scene[ray], found] > 0).all()


@pytest.mark.parametrize("pattern", range(PATTERNS))
def test_shadows_are_those_of_trying_all_objects(
    world: World, surface: Surface, pattern: int
) -> None:
    patterns = torch.full_like(surface.scene, pattern)
    position = world.lamps[:, 0].index_select(-1, surface.scene)  # [3, 4, R]
    way = position - surface.points[:, None]
    direction = way / way.norm(dim=0)
    asked = (direction * surface.normals[:, None]).sum(0) > 0
    shares = world._shares(surface, direction, patterns, asked)
    for lamp in range(4):
        number = torch.full_like(surface.scene, lamp)
        ways = world._ways(surface.scene, surface.points, number, patterns)
        seen = []
        for to_place in ways.unbind(1):
            away = to_place.norm(dim=0)
            back = Rays(surface.scene, surface.points, to_place / away, surface.number)
            seen.append((met_by_trying_all(world, back) >= away).all(0).float())
        expected = torch.stack(seen).mean(0)
        assert torch.equal(shares[lamp][asked[lamp]], expected[asked[lamp]]), lamp
        assert 0.2 < expected.mean() < 0.99
        assert lamp == 3 or (expected == 0.5).any(), "one of two places is hidden"


def test_places_lie_on_the_lamps_and_around_their_middles(world: World, surface: Surface) -> None:
    one = surface.rows(torch.arange(1))
    for lamp, edge in enumerate((0.5, 1.0, 0.5)):
        position, axis, across, up = world.lamps[:, :, lamp, 0].unbind(1)
        scene, number = (torch.full((PATTERNS,), x) for x in (0, lamp))
        points = one.points.expand(3, PATTERNS)
        places = world._ways(scene, points, number, torch.arange(PATTERNS)) + points[:, None]
        apart = (places - position[:, None, None]).flatten(1)
        assert (axis @ apart).abs().max() < 1e-5
        for side in (across, up):
            assert (side / edge @ apart).abs().max() < edge / 2
            assert torch.allclose(side.norm(), torch.tensor(edge))
        assert apart.mean(1).abs().max() < 1e-5
        assert len(apart.mT.unique(dim=0)) == 2 * PATTERNS


def test_ground_is_met_where_bisection_meets_it(world: World, rays: Rays) -> None:
    """The profile is convex and rays begin above it: what is above once it is below stays so."""
    with resources.files("emorl.data.generators").joinpath("clevr_ground.npz").open("rb") as file:
        stored = np.load(file)
        way, height, normal = (stored[name] for name in ("s", "z", "normal"))
    generator = torch.Generator().manual_seed(0)
    up = torch.nn.functional.normalize(torch.randn(3, 4000, generator=generator), dim=0)
    low = 0.1 + 3 * torch.rand(3, 4000, generator=generator)
    zeros = torch.zeros(4000, dtype=torch.int64)
    outside = 0
    for some in (rays, Rays(zeros, low, up, zeros - 3)):
        found = world.ground.distance(some).double().numpy()
        origin, direction = (x.double().numpy() for x in (some.origin, some.direction))
        across = normal[:2] @ direction[:2]
        start = normal[:2] @ origin[:2]
        with np.errstate(divide="ignore"):
            end = np.where(across > 1e-4, (way[-1] - start) / across, 1e4)
        near, far = np.zeros_like(end), np.minimum(end, 1e4)
        for _ in range(60):
            middle = (near + far) / 2
            point = origin[2] + middle * direction[2]
            above = point > np.interp(start + middle * across, way, height)
            near, far = np.where(above, middle, near), np.where(above, far, middle)
        met = far < np.minimum(end, 1e4) - 1e-3
        over = (origin[2] + end * direction[2] > height[-1] + 0.01) & ~met
        slow = np.abs(direction[2]) < 2e-4  # rays along the floor
        assert (found[over] == FAR).all()
        assert (found[met & ~slow & (end - far > 0.1)] < FAR).all()
        both = met & (found < FAR) & (far < 100)
        assert both.sum() > 1000
        point = (origin + found * direction)[:, both]
        assert np.abs(point[2] - np.interp(normal[:2] @ point[:2], way, height)).max() < 1e-3
        assert np.median(np.abs(found - far)[both]) < 1e-5
        outside += int(over.sum())
    assert outside > 500
    assert (world.meet(rays, world.camera)[0] >= GROUND).all(), "the backdrop fills the image"
