"""Multi-dSprites: squares, ellipses and hearts that hide one another, 64 x 64 pixels.

The three variants of DeepMind's multi-object data sets (Kabra et al., "Multi-Object Datasets",
2019). Their shapes are dSprites' (`emorl.data.generators.sprites`). Not published is how scenes
were drawn. Here everything is uniform and independent: the number of sprites, shapes, positions,
angles, scales from 0.5 to 1, hues, and saturation and value from 0.5 to 1, as the published counts
of squares by colour suggest; a later sprite hides an earlier one, however much of it.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emorl.data import random
from emorl.data.base import Batch
from emorl.data.generators.base import GeneratedDataset
from emorl.data.generators.sprites import FRAME, HEART, Outlines, Sprites

_STEPS = {"scale": 6, "angle": 40, "position": 32}  # of dSprites' factors
_DRAWS = 8  # random numbers of a sprite


class Variant(NamedTuple):
    """What the variants differ in.

    Attributes:
        least: number of sprites.
        most: number of sprites.
        coloured: whether sprites have a random hue; else they are white.
        background: "black", "grey" or "colour".
    """

    least: int
    most: int
    coloured: bool
    background: str


VARIANTS = {
    "colored_on_grayscale": Variant(2, 5, True, "grey"),
    "binarized": Variant(2, 3, False, "black"),
    "colored_on_colored": Variant(1, 4, True, "colour"),
}


class MultiDSprites(GeneratedDataset):
    """Endless scenes, each a pure function of (seed, split, index).

    Factors (float32, entity 0 = background, those that a scene lacks are 0 and come last): shape
    (1 square, 2 ellipse, 3 heart), x and y in [0, 1), from left to right and from top to bottom,
    scale in [0.5, 1], orientation in radians, color [E, 3] in [0, 1], visibility (1: it is there,
    also where others hide all of it).

    Args:
        variant: "colored_on_grayscale" (2 to 5 sprites), "binarized" (2 or 3, white on black) or
            "colored_on_colored" (1 to 4).
        split: "train", "val" or "test".
        seed: any integer.
        least_value: the least saturation and value (of HSV) of a colour, 0 to 1.
        grid: take scales, angles and positions from dSprites' 6, 40 and 32 steps instead of all
            numbers between.
        device: where images are made.

    Raises:
        ValueError: if the variant or the split is unknown, or `least_value` is not in [0, 1].
    """

    image_size = (FRAME, FRAME)

    def __init__(
        self,
        variant: str = "colored_on_grayscale",
        *,
        split: str = "train",
        seed: int = 0,
        least_value: float = 0.5,
        grid: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(device)
        if variant not in VARIANTS:
            raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")
        if split not in random.SPLITS:
            raise ValueError(f"split: expected one of {', '.join(random.SPLITS)}, got {split!r}")
        if not 0 <= least_value <= 1:
            raise ValueError(f"least_value: expected 0 to 1, got {least_value}")
        self.name = f"multi_dsprites-{variant}"
        self.variant, self.split, self.seed = VARIANTS[variant], split, seed
        self.least_value, self.grid = least_value, grid

    @cached_property
    def _outlines(self) -> Outlines:
        return Outlines(self.device)

    def reading(self) -> dict[str, Any]:
        """Also the sprites' least value, and where they may lie."""
        return {**super().reading(), "least_value": self.least_value, "grid": self.grid}

    def generate(self, index: Tensor) -> Batch:
        """The scenes of `index`, int64 [B]."""
        # On the CPU the sprites of a chunk stay in the cache; a GPU wants more work per call.
        chunk = 128 if self.device.type == "cpu" else 2**13
        image, mask, factors = zip(*map(self._generate, index.split(chunk)), strict=True)
        joined = {name: torch.cat([part[name] for part in factors]) for name in factors[0]}
        return Batch(torch.cat(image), torch.cat(mask), joined, index)

    def _generate(self, index: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        state = random.stream(index, split=self.split, seed=self.seed)
        sprites, present = self._sprites(state)
        colors = self._colors(state) * _with_background(present)[..., None]
        label = _label_map(*self._outlines.cover(sprites), present)
        palette = (colors * 255).round().to(torch.uint8).mT.contiguous()
        image = palette.gather(2, label[:, None].expand(-1, 3, -1))
        image, mask = (x.unflatten(2, (FRAME, FRAME)) for x in (image, label.byte()[:, None]))
        return image, mask, _factors(sprites, present, colors)

    def _sprites(self, state: Tensor) -> tuple[Sprites, Tensor]:
        """The most sprites that a scene can have, [B, most], and which of them are there, bool."""
        least, most, *_ = self.variant
        count = least + random.below(random.fold(state, 0), most + 1 - least)
        number = torch.arange(most, device=self.device)
        bits = random.fold(state[:, None, None], 1 + number[:, None] * _DRAWS + self._draws)
        shape, scale, angle, x, y, *_ = bits.unbind(-1)
        sprites = Sprites(
            1 + random.below(shape, HEART),
            0.5 + 0.5 * self._fraction(scale, "scale"),
            2 * math.pi * self._fraction(angle, "angle"),
            self._fraction(x, "position"),
            self._fraction(y, "position"),
        )
        return sprites, number < count[:, None]

    @cached_property
    def _draws(self) -> Tensor:
        return torch.arange(_DRAWS, device=self.device)

    def _fraction(self, bits: Tensor, of: str) -> Tensor:
        """Uniform numbers from 0 to 1; on a grid both ends belong to it."""
        steps = _STEPS[of]
        return random.below(bits, steps) / (steps - 1.0) if self.grid else random.uniform(bits)

    def _colors(self, state: Tensor) -> Tensor:
        """The colours of the background and of all sprites, [B, 1 + most, 3] in [0, 1]."""
        variant = self.variant
        number = torch.arange(variant.most + 1, device=self.device)
        first = 1 + variant.most * _DRAWS
        bits = random.fold(state[:, None, None], first + number[:, None] * 3 + self._draws[:3])
        hue, *others = random.uniform(bits).unbind(-1)
        saturation, value = (self.least_value + (1 - self.least_value) * x for x in others)
        colors = to_rgb(hue, saturation, value)
        if not variant.coloured:
            colors = torch.ones_like(colors)
        if variant.background != "colour":
            grey = hue[:, :1] if variant.background == "grey" else torch.zeros_like(hue[:, :1])
            colors[:, 0] = grey
        return colors


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Colours from HSV, all in [0, 1], to RGB, [..., 3]."""
    steps = torch.arange(5, 0, -2, device=hue.device)  # made there: a copy would wait for a GPU
    sector = (hue[..., None] * 6 + steps) % 6
    ramp = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)


def _label_map(place: Tensor, inside: Tensor, present: Tensor) -> Tensor:
    """Which entity each pixel shows, int64 [B, H W]: the last that covers it."""
    number = torch.arange(1, present.shape[1] + 1, device=place.device) * present
    label = place.new_zeros(len(place), FRAME * FRAME)
    shown = inside * number[..., None]
    return label.scatter_reduce_(1, place.flatten(1), shown.flatten(1), "amax")


def _with_background(present: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(present[:, :1]), present], dim=1)


def _factors(sprites: Sprites, present: Tensor, colors: Tensor) -> dict[str, Tensor]:
    """DeepMind's factors of a batch, the background entity put first."""
    named = {
        "x": sprites.x,
        "y": sprites.y,
        "shape": sprites.shape,
        "scale": sprites.scale,
        "orientation": sprites.angle,
    }
    factors = {
        name: torch.cat([torch.zeros_like(value[:, :1]), value * present], dim=1).float()
        for name, value in named.items()
    }
    visibility = _with_background(present).float()
    return {**factors, "color": colors.float(), "visibility": visibility}
