"""CLEVR-like scenes: rules, labels by another method, light against two real images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.data import Batch, Clevr, open_dataset
from emorl.data import random as counters
from emorl.data.generators.clevr import FRAME, _crop_rays, _rays
from emorl.data.generators.clevr_light import World, to_srgb
from emorl.data.generators.clevr_scenes import CYLINDER, METAL, SPHERE, Scenes, propose, view
from emorl.data.generators.clevr_textures import KINDS, Textures
from emorl.data.generators.ray_caster import Ground, Objects
from emorl.data.transforms import CROPS, TransformedDataset

IMAGES = 8


@pytest.fixture(scope="module")
def generator() -> Clevr:
    return Clevr(6, seed=1)


@pytest.fixture(scope="module")
def batch(generator: Clevr) -> Batch:
    return generator.generate(torch.arange(IMAGES))


@pytest.fixture(scope="module")
def many() -> Scenes:
    """Proposed scenes in which every object has a place, of up to ten objects."""
    state = counters.stream(torch.arange(3000), split="train", seed=0)
    scenes, placed = propose(state, torch.zeros_like(state), 10)
    return scenes.rows(placed.nonzero()[:, 0])


def distances(scenes: Scenes, number: int, points: np.ndarray) -> np.ndarray:
    """Distances of points [P, 3] to an object of the first scene, or less; negative inside."""
    radius = float(scenes.radius[0, number])
    turn = float(scenes.rotation[0, number])
    x, y = (points[:, :2] - scenes.place[0, number].numpy()).T
    x, y = math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x
    z = points[:, 2] - radius
    shape = int(scenes.shape[0, number])
    if shape == SPHERE:
        return np.sqrt(x * x + y * y + z * z) - radius
    # CLEVR's cylinders and cubes have rounded edges, in the norm of order 3.
    sides = (np.hypot(x, y), z) if shape == CYLINDER else (x, y, z)
    edge = (0.075 if shape == CYLINDER else 0.25) * radius
    beyond = np.maximum(np.abs(np.stack(sides)) - (radius - edge), 0)
    return np.cbrt((beyond**3).sum(0)) - edge


def test_labels_are_those_of_marching_along_rays(generator: Clevr, batch: Batch) -> None:
    """Sphere tracing (Hart 1996), which knows of an object only how far away it is."""
    for index in range(3):
        scenes = generator.scenes(torch.tensor([index]))
        rays = _crop_rays(scenes.camera, 96, offsets=[(0.5, 0.5)])
        direction = rays.direction.double().mT.numpy()
        origin = scenes.camera.numpy()
        nearest, label = np.full(len(direction), 30.0), np.zeros(len(direction), np.uint8)
        for number in range(int(scenes.present.sum())):
            along = np.full(len(direction), 3.0)
            for _ in range(60):
                away = distances(scenes, number, origin + along[:, None] * direction)
                along = np.minimum(along + away, 30)
            hit = (away < 1e-3) & (along < nearest)
            nearest[hit], label[hit] = along[hit], number + 1
        # Rays that touch an outline may be on either side.
        assert (label.reshape(96, 96) != batch.mask[index, 0].numpy()).sum() <= 6


def test_scenes_keep_the_rules(many: Scenes) -> None:
    assert len(many.present) > 300
    right, _, forward = view(many.camera)
    behind = F.normalize(forward[:, :2], dim=1)
    for axis in (right[:, :2], behind):
        along = (many.place * axis[:, None]).sum(-1)
        assert between(many, along).min() >= 0.4
    apart = (many.place[:, :, None] - many.place[:, None]).norm(dim=-1)
    gaps = apart - many.radius[:, :, None] - many.radius[:, None]
    assert gaps[pairs(many)].min() >= 0.25
    assert many.place[many.present].abs().max() <= 3
    assert (many.camera - torch.tensor([7.48113, -6.50764, 5.34367])).abs().max() <= 0.5
    assert set(many.radius[many.present].unique().tolist()) == {0.35, 0.7}


def pairs(scenes: Scenes) -> Tensor:
    """Which two objects both exist, and are two, bool [B, K, K]."""
    both = scenes.present[:, :, None] & scenes.present[:, None]
    return both & ~torch.eye(scenes.present.shape[1], dtype=torch.bool)


def between(scenes: Scenes, along: Tensor) -> Tensor:
    return (along[:, :, None] - along[:, None]).abs()[pairs(scenes)]


def test_every_factor_is_as_frequent_as_the_rules_say() -> None:
    """Of proposals: what has no place or is hidden is drawn anew, which favours small objects."""
    state = counters.stream(torch.arange(2000), split="train", seed=0)
    scenes, _ = propose(state, torch.zeros_like(state), 10)
    samples = {
        "shape": (scenes.shape[scenes.present], range(1, 4)),
        "size": (scenes.size[scenes.present], (1, 2)),
        "material": (scenes.material[scenes.present], (1, 2)),
        "color": (scenes.color[scenes.present], range(1, 9)),
        "count": (scenes.present.sum(1), range(3, 11)),
    }
    for name, (values, among) in samples.items():
        counts = np.array([int((values == x).sum()) for x in among])
        assert counts.sum() == len(values), name
        expected = counts.sum() / len(counts)
        assert np.abs(counts - expected).max() < 4 * math.sqrt(expected), (name, counts)
    rotation = np.sort(scenes.rotation[scenes.present].numpy()) / 360
    rank = np.arange(1, len(rotation) + 1) / len(rotation)
    assert np.abs(rotation - rank).max() < 2.23 / math.sqrt(len(rotation))


def test_every_object_is_visible(generator: Clevr) -> None:
    """200 pixels of the frame, counted at every second one; here at each, with a margin for it."""
    scenes = generator.scenes(torch.arange(4))
    rows, columns = (torch.arange(side) + 0.5 for side in FRAME)
    row, column = (x.ravel() for x in torch.meshgrid(rows, columns, indexing="ij"))
    for index in range(4):
        one = scenes.rows(torch.tensor([index]))
        rays = _rays(one.camera, torch.zeros(len(row), dtype=torch.int64), row, column)
        number, _ = Objects.of(one).nearest(rays)
        counts = torch.bincount(number[number >= 0], minlength=6)[one.present[0]]
        assert counts.min() >= 0.85 * 200


def test_factors_are_deepminds(batch: Batch) -> None:
    factors = batch.factors
    there = factors["visibility"] > 0
    assert (there.sum(1) >= 4).all()
    assert (there.sum(1) <= 7).all()
    assert {name: value.shape for name, value in factors.items()} == dict.fromkeys(
        ("x", "y", "z", "rotation", "size", "material", "shape", "color", "visibility"),
        torch.Size([IMAGES, 7]),
    )
    for name, value in factors.items():
        assert not value[~there].any(), name
        if name != "visibility":
            assert not value[:, 0].any()
    small = factors["size"] == 2
    assert torch.equal(factors["z"][small], torch.full_like(factors["z"][small], 0.35))
    assert batch.mask is not None
    assert (batch.mask.flatten(1).amax(1) <= there.sum(1) - 1).all()


def test_an_image_is_a_function_of_its_index_alone(generator: Clevr, batch: Batch) -> None:
    """Scenes to the bit; pixels but for rounding, where vectors are of another length."""
    again = generator.generate(torch.tensor([5, 2]))
    assert torch.equal(again.mask, batch.mask[[5, 2]])
    assert (again.image.int() - batch.image[[5, 2]].int()).abs().max() <= 1
    for name, value in again.factors.items():
        assert torch.equal(value, batch.factors[name][[5, 2]])
    index = torch.tensor([5, 2])
    together = generator.render(generator.scenes(index), index)
    assert (together[0].int() - again.image.int()).abs().max() <= 1
    assert torch.equal(together[1], again.mask)
    other = Clevr(6, seed=2).scenes(torch.arange(2))
    assert not torch.equal(other.place, generator.scenes(torch.arange(2)).place)


def test_light_is_as_in_real_images(generator: Clevr, fixtures_dir: Path) -> None:
    """Top and bottom row and left column: within 10 grey levels of what jitter can make of them."""
    real = np.load(fixtures_dir / "data" / "clevr_v1_real2.npz")["image"].mean(-1)
    scenes, _ = propose(
        counters.stream(torch.arange(24), split="train", seed=0), torch.zeros(24).long(), 6
    )
    empty = scenes._replace(present=torch.zeros_like(scenes.present))
    world = World.of(empty, Ground(torch.device("cpu")))
    height, width = FRAME
    across, down = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    edges = {
        "top": (torch.full_like(across, 0.5), across, real[:, 0]),
        "bottom": (torch.full_like(across, height - 0.5), across, real[:, -1]),
        "left": (down, torch.full_like(down, 0.5), real[:, :, 0]),
    }
    for name, (row, column, profiles) in edges.items():
        scene = torch.arange(24).repeat_interleave(len(row))
        rays = _rays(empty.camera, scene, row.repeat(24), column.repeat(24))
        light = to_srgb(world.radiance(rays, torch.zeros_like(scene)))
        grey = (255 * light.mean(0)).view(24, -1).numpy()
        beyond = np.maximum(grey.min(0) - profiles, 0) + np.maximum(profiles - grey.max(0), 0)
        assert beyond.mean(1).max() < 10, name


def test_metal_has_no_more_single_bright_pixels_than_real_images(batch: Batch) -> None:
    """And no dark ones. The two real images, cropped and 96x96, have one each: a lamp's image."""
    grey = batch.image.float().mean(1)
    around = F.unfold(F.pad(grey[:, None], (1, 1, 1, 1), "reflect"), 3).view(IMAGES, 9, 96, 96)
    off = grey - around.median(1).values
    nearest = (around - grey[:, None]).abs()
    nearest[:, 4] = 255
    alone = (off.abs() > 60) & (nearest.amin(1) > 60)
    assert batch.mask is not None
    material = batch.factors["material"].gather(1, batch.mask.flatten(1).long()).view_as(grey)
    assert (material == METAL).float().mean() > 0.02
    assert not (alone & (off < 0)).any()
    assert not (alone & (material != METAL)).any()
    assert alone.sum() <= 1.5 * IMAGES


def test_textures_colour_the_same_scenes(generator: Clevr) -> None:
    """Colours differ on the ground as they do not without textures; sizes are ClevrTex's."""
    textured = open_dataset("clevrtex-like", size=48, seed=1)
    batch = textured.__getitems__(range(6))
    factors, there = batch.factors, batch.factors["visibility"] > 0
    assert "color" not in factors
    radii = factors["z"][:, 1:][there[:, 1:]].unique()
    assert torch.equal(radii, torch.tensor([0.4, 0.6, 0.9]))
    kinds = factors["material"][:, 1:][there[:, 1:]].unique().tolist()
    assert len(kinds) > 3
    assert set(kinds) <= set(range(1, len(KINDS) + 1))
    assert hues(batch) > 2 * hues(generator.generate(torch.arange(6)))
    again = textured.__getitems__([3])
    assert torch.equal(again.mask[0], batch.mask[3])
    assert (again.image[0].int() - batch.image[3].int()).abs().max() <= 1


def hues(batch: Batch) -> float:
    """How far colours, apart from their brightness, differ on the ground, on average."""
    image = batch.image.double() + 1
    shares = image / image.sum(1, keepdim=True)
    ground = batch.mask[:, 0] == 0
    pairs = zip(shares, ground, strict=True)
    return float(np.mean([share[:, where].std(1).sum() for share, where in pairs]))


def test_a_texture_has_its_two_colours_and_smooth_noise() -> None:
    state = counters.stream(torch.arange(40), split="train", seed=0)
    textures = Textures.draw(state, 1)
    assert set(textures.kind.unique().tolist()) == set(range(len(KINDS)))
    places = torch.rand(4000, 3) * 8 - 4
    scene, surface = torch.arange(40).repeat(100), torch.zeros(4000, dtype=torch.int64)
    color = textures.paint(scene, surface, places)
    first, second = textures.colors[scene, 0].unbind(1)
    between = torch.minimum(first, second) - 1e-6, torch.maximum(first, second) + 1e-6
    assert ((between[0] <= color) & (color <= between[1])).all()
    step = 1e-3  # of a smooth step, whose slope is 1.5 at most, along three axes
    near = textures._noise(places + step) - textures._noise(places)
    assert near.abs().max() < 3 * 1.5 * step


@pytest.mark.parametrize(("size", "most"), [(96, 4), (48, 16)])
def test_no_more_is_rendered_ahead_than_is_rendered_at_once(
    monkeypatch: pytest.MonkeyPatch, size: int, most: int
) -> None:
    """A batch read after others must not wait for hundreds of images, which nobody may ask for."""
    made = []

    def generate(self: Clevr, index: Tensor) -> Batch:
        made.append(len(index))
        return Batch(torch.zeros(len(index), 3, 1, 1), None, {}, index)

    monkeypatch.setattr(Clevr, "generate", generate)
    images = Clevr(6, size=size)
    for start in range(0, 24, 4):
        assert images.__getitems__(range(start, start + 4)).index.tolist() == list(
            range(start, start + 4)
        )
    assert max(made) == most


@pytest.mark.parametrize("name", ["clevr6", "clevr10", "clevrtex-like"])
@pytest.mark.parametrize("crop", CROPS)
def test_images_are_made_as_published_crops_leave_them(name: str, crop: str) -> None:
    """A run on ClevrTex, say, takes clevrtex-like as it is: nothing is cut out again."""
    images = open_dataset(name, size=16, crop=crop)
    assert isinstance(images, TransformedDataset)
    assert images.image_size == (16, 16)
    assert images.box == (0, 16, 0, 16)


def test_any_size_and_crop() -> None:
    small = open_dataset("clevr10", size=32, crop="clevr", seed=3)
    assert small.image_size == (32, 32)
    sample = small[1]
    assert sample["image"].shape == (3, 32, 32)
    assert sample["factors"]["x"].shape == (11,)
    with pytest.raises(ValueError, match="most: expected 3 to 10, got 2"):
        Clevr(2)
    with pytest.raises(ValueError, match="size: expected 1 to 1024, got 0"):
        Clevr(size=0)
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'all'"):
        Clevr(split="all")
