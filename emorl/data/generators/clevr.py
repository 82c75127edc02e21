"""CLEVR-like scenes: spheres, cylinders and cubes of rubber and metal, by rays.

Scenes follow CLEVR's rules, and camera, lamps and backdrop its base scene; what Blender traces in
full is shaded here by `emorl.data.generators.clevr_light`. Pixels are therefore like CLEVR's, not
equal: numbers on these images are numbers on "clevr-like" scenes. Masks, visibility and factors are
exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.data import random
from emorl.data.base import Batch
from emorl.data.generators.base import GeneratedDataset
from emorl.data.generators.clevr_light import PATTERNS, World, to_srgb
from emorl.data.generators.clevr_scenes import RADII, Scenes, propose, view
from emorl.data.generators.clevr_textures import Textures
from emorl.data.generators.ray_caster import Ground, Objects, Rays, of_scenes, unit
from emorl.devices import device_there

FRAME = (240, 320)
_FOCAL = 350.0  # pixels of the frame
_CROP = (29, 64, 192)  # top, left and side of what the models see
_LEAST_VISIBLE = 200  # pixels of the frame, of each object
_QUARTERS = ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))  # of a pixel
_EVERY = 2  # pixels of the frame, at which visibility is counted
_MOST_ATTEMPTS = 10_000
# On the CPU, where fewer cost more calls, and more no longer stay in the cache; found by trying.
_PIXELS_AT_ONCE, _FRAMES_AT_ONCE = 4 * 96**2, 4


class Clevr(GeneratedDataset):
    """Endless scenes, each a pure function of (seed, split, index).

    Factors (float32, entity 0 = background, absent ones 0 and last): x, y, z in Blender's units,
    rotation in degrees, size (1 large, 2 small), material (1 rubber, 2 metal), shape (1 sphere,
    2 cylinder, 3 cube), color (1 to 8: red, cyan, green, blue, brown, gray, purple, yellow),
    visibility. They are DeepMind's codes ("Multi-Object Datasets"). An object can lie outside of
    the crop that the models see, rows 29 to 220 and columns 64 to 255 of 240 x 320.

    Args:
        most: the largest number of objects, 3 to 10; each number from 3 on is as frequent.
        size: height and width of the image, onto which the crop is rendered.
        split: "train", "val" or "test".
        seed: any integer.
        device: where images are made.

    Raises:
        ValueError: if the split is unknown, or a number is not in its range.
    """

    _RADII: ClassVar[Sequence[float]] = RADII
    _FACTORS: ClassVar[Sequence[str]] = (
        *("x", "y", "z", "rotation", "size", "material", "shape", "color"),
    )

    def __init__(
        self,
        most: int = 10,
        *,
        size: int = 96,
        split: str = "train",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if split not in random.SPLITS:
            raise ValueError(f"split: expected one of {', '.join(random.SPLITS)}, got {split!r}")
        for name, value, low, high in (("most", most, 3, 10), ("size", size, 1, 1024)):
            if not low <= value <= high:
                raise ValueError(f"{name}: expected {low} to {high}, got {value}")
        device = device_there(device)
        on_cpu = device.type == "cpu"
        self._chunk = max(1, _PIXELS_AT_ONCE // size**2) if on_cpu else 128
        super().__init__(device, most_at_once=self._chunk)
        self.name = f"clevr{most}-like"
        self.image_size = (size, size)
        self.most, self.split, self.seed = most, split, seed

    @cached_property
    def _ground(self) -> Ground:
        return Ground(self.device)

    def reading(self) -> dict[str, Any]:
        """Also the most objects."""
        return {**super().reading(), "most": self.most}

    def generate(self, index: Tensor) -> Batch:
        """The scenes of `index`, int64 [B]."""
        scenes = Scenes(*map(torch.cat, zip(*map(self.scenes, index.split(64)), strict=True)))
        rows = torch.arange(len(index), device=index.device).split(self._chunk)
        parts = [self.render(scenes.rows(part), index[part]) for part in rows]
        image, mask = (torch.cat(x) for x in zip(*parts, strict=True))
        return Batch(image, mask, self._factors(scenes), index)

    def scenes(self, index: Tensor) -> Scenes:
        """The first attempt of each index whose objects have places and are visible."""
        state = random.stream(index, split=self.split, seed=self.seed)
        attempt = torch.zeros_like(index)
        accepted, _ = propose(state, attempt, self.most, self._RADII)
        pending = torch.arange(len(index), device=index.device)
        at_once = _FRAMES_AT_ONCE if self.device.type == "cpu" else self._chunk
        for _ in range(_MOST_ATTEMPTS):
            scenes, good = propose(state[pending], attempt[pending], self.most, self._RADII)
            placed = good.nonzero()[:, 0]
            good[placed] = torch.cat([_visible(scenes.rows(x)) for x in placed.split(at_once)])
            for whole, part in zip(accepted, scenes, strict=True):
                whole[pending[good]] = part[good]
            pending = pending[~good]
            if not len(pending):
                return accepted
            attempt[pending] += 1
        raise RuntimeError(f"{self.name}: no scene with visible objects in {_MOST_ATTEMPTS} tries")

    def _factors(self, scenes: Scenes) -> dict[str, Tensor]:
        x, y = scenes.place.unbind(-1)
        own = {**scenes._asdict(), "x": x, "y": y, "z": scenes.radius}
        factors = {name: F.pad(own[name] * scenes.present, (1, 0)) for name in self._FACTORS}
        factors["visibility"] = F.pad(scenes.present, (1, 0), value=True)
        return {name: value.float() for name, value in factors.items()}

    def _world(self, scenes: Scenes, index: Tensor) -> World:
        return World.of(scenes, self._ground)

    def render(self, scenes: Scenes, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [B, 3, size, size] and label maps uint8 [B, 1, size, size] of scenes."""
        world, size = self._world(scenes, index), self.image_size[0]
        rays = _crop_rays(scenes.camera, size, offsets=[(0.5, 0.5)])
        number, distance = world.meet(rays, world.camera)
        label = (number.clamp_min(-1) + 1).view(-1, size, size)
        many = (_is_edge(label) | _is_metal(label, world.metal)).ravel()
        inner, outer = (~many).nonzero()[:, 0], many.nonzero()[:, 0]
        several = _crop_rays(scenes.camera, size, offsets=_QUARTERS, rows=outer)
        row, column = _place(inner, size)
        single = *rays.rows(inner), number[inner], distance[inner], 2 * (row % 2) + column % 2
        turn = torch.arange(PATTERNS, device=label.device).repeat_interleave(len(outer))
        quarters = *several, *world.meet(several, world.camera), turn
        every = [torch.cat(x, dim=-1) for x in zip(single, quarters, strict=True)]
        shaded = world.shade(Rays(*every[:-3]), *every[-3:]).clamp_(0, 1)
        light = shaded.new_empty(3, len(many))
        light.index_copy_(1, inner, shaded[:, : len(inner)])
        finer = shaded[:, len(inner) :].view(3, PATTERNS, len(outer)).mean(1)
        light.index_copy_(1, outer, finer)
        image = (to_srgb(light) * 255).round().to(torch.uint8)
        image = image.view(3, -1, size, size).transpose(0, 1).contiguous()
        return image, label.to(torch.uint8)[:, None]


class ClevrTexLike(Clevr):
    """Scenes like ClevrTex's (Karazija et al. 2021) of its three plain shapes, with textures.

    Sizes are ClevrTex's, and the rules are CLEVR's; textures are made, not photographed, and are on
    objects and ground alike. Never to be reported as ClevrTex. Factors are those of `Clevr` without
    colour: size is 1 (0.9), 2 (0.6) or 3 (0.4), material 1 to 5 (checks, bricks, wood, stripes,
    clouds). Arguments are those of `Clevr`.
    """

    _RADII = (0.9, 0.6, 0.4)
    _FACTORS = ("x", "y", "z", "rotation", "size", "material", "shape")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.name = "clevrtex-like"

    def scenes(self, index: Tensor) -> Scenes:
        """As `Clevr.scenes`; the materials are the kinds of textures."""
        scenes = super().scenes(index)
        return scenes._replace(material=self._textures(index).kind[:, :-1] + 1)

    def _textures(self, index: Tensor) -> Textures:
        state = random.stream(index, split=self.split, seed=self.seed)
        return Textures.draw(random.fold(state, 15), self.most + 1)

    def _world(self, scenes: Scenes, index: Tensor) -> World:
        return World.of(scenes, self._ground, self._textures(index))


def _crop_rays(
    camera: Tensor, size: int, *, offsets: Sequence[tuple[float, float]], rows: Tensor | None = None
) -> Rays:
    """Rays through points of the crop's pixels, or some of them: offset by offset, then by image.

    Offsets are fractions of a pixel, downwards and to the right.
    """
    top, left, side = _CROP
    pixels = torch.arange(len(camera) * size**2, device=camera.device) if rows is None else rows
    scene = pixels // size**2
    row, column = _place(pixels, size)
    places = camera.new_tensor(offsets, dtype=torch.float32).mT[..., None] * (side / size)
    row = (top + row * (side / size) + places[0]).ravel()
    column = (left + column * (side / size) + places[1]).ravel()
    return _rays(camera, scene.repeat(len(offsets)), row, column)


def _place(pixels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Row and column of pixels, which are counted through all images."""
    line = pixels // size
    return line % size, pixels - line * size


def _rays(camera: Tensor, scene: Tensor, row: Tensor, column: Tensor) -> Rays:
    right, up, forward = (of_scenes(axis.float().mT, scene) for axis in view(camera))
    height, width = FRAME
    direction = _FOCAL * forward + (column - width / 2) * right + (height / 2 - row) * up
    origin = of_scenes(camera.float().mT, scene).expand_as(direction)
    return Rays(scene, origin, unit(direction), torch.full_like(scene, -3))


def _visible(scenes: Scenes) -> Tensor:
    """Whether every object shows enough pixels in the whole frame, bool [B]."""
    batch, most = scenes.present.shape
    device = scenes.present.device
    rows, columns = (torch.arange(_EVERY / 2, side, _EVERY, device=device) for side in FRAME)
    places = len(rows) * len(columns)
    scene = torch.arange(batch, device=device).repeat_interleave(places)
    row, column = (x.ravel().repeat(batch) for x in torch.meshgrid(rows, columns, indexing="ij"))
    rays = _rays(scenes.camera, scene, row, column)
    number, _ = Objects.of(scenes).nearest(rays, scenes.camera.float())
    counts = torch.zeros(batch * (most + 1), device=device)
    slot = torch.where(number < 0, most, number).add_(scene, alpha=most + 1)
    counts.index_add_(0, slot, torch.ones_like(row))
    enough = counts.view(batch, most + 1)[:, :most] * _EVERY**2 >= _LEAST_VISIBLE
    return (enough | ~scenes.present).all(1)


def _is_edge(label: Tensor) -> Tensor:
    """Pixels beside another object's, bool [B, H, W]."""
    edge = torch.zeros_like(label, dtype=torch.bool)
    across, down = label[:, :, 1:] != label[:, :, :-1], label[:, 1:] != label[:, :-1]
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    return edge


def _is_metal(label: Tensor, metal: Tensor) -> Tensor:
    of_labels = metal.roll(1, dims=1)  # the ground's is last
    return of_labels.gather(1, label.flatten(1)).view_as(label)
