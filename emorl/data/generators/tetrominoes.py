"""Tetrominoes: three coloured tetrominoes on black, 35 x 35 pixels, exactly as published.

Geometry, colours, shading and labels are those of DeepMind's multi-object data sets (Kabra et al.,
"Multi-Object Datasets", 2019): re-rendered from their factors, its published records come out bit
for bit. Not published is how scenes were drawn; here shapes, colours and positions are uniform
and independent, and a scene in which objects overlap is drawn anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from emorl.data import random
from emorl.data.base import Batch
from emorl.data.generators.base import GeneratedDataset
from emorl.data.generators.tetromino_shapes import FRAME, SHAPES, ShapeTables, paint

OBJECTS = 3
_ATTEMPTS = 8  # scenes proposed at once; about one in seven is accepted
_DRAWS = 4 * OBJECTS


class Tetrominoes(GeneratedDataset):
    """Endless Tetrominoes scenes, each a pure function of (seed, split, index).

    Factors (float32, entity 0 = background): shape [4] (0 = background, 1 to 19), x [4] = top row
    and y [4] = left column of the bounding box in pixels, color [4, 3] in {0, 1}, visibility [4].

    Args:
        split: "train", "val" or "test"; the scenes of one seed's splits are drawn from
            different random states.
        seed: any integer.
        shapes: the shape ids to draw from, 1 to 19.
        device: where images are made.

    Raises:
        ValueError: if the split or a shape id is unknown.
    """

    name = "tetrominoes"
    image_size = (FRAME, FRAME)

    def __init__(
        self,
        *,
        split: str = "train",
        seed: int = 0,
        shapes: Sequence[int] = tuple(SHAPES),
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(device)
        if split not in random.SPLITS:
            raise ValueError(f"split: expected one of {', '.join(random.SPLITS)}, got {split!r}")
        if not shapes or not set(shapes) <= set(SHAPES):
            raise ValueError(f"shapes: expected ids from 1 to {len(SHAPES)}, got {list(shapes)}")
        self.split, self.seed, self.shapes = split, seed, tuple(shapes)

    @cached_property
    def _tables(self) -> ShapeTables:
        return ShapeTables.on(self.device)

    @cached_property
    def _shape_ids(self) -> Tensor:
        return torch.tensor(self.shapes, device=self.device)

    def reading(self) -> dict[str, Any]:
        """Also the shapes."""
        return {**super().reading(), "shapes": self.shapes}

    def generate(self, index: Tensor) -> Batch:
        """The scenes of `index`, int64 [B]."""
        # On the CPU the proposals of a chunk stay in the cache; a GPU wants more work per call.
        chunk = 1024 if self.device.type == "cpu" else 2**16
        scenes = [self._accepted(part) for part in index.split(chunk)]
        shape, color, top, left = (torch.cat(parts) for parts in zip(*scenes, strict=True))
        image, mask = paint(self._tables, shape, top, left, color)
        return Batch(image, mask, _factors(shape, top, left, color), index)

    def propose(self, state: Tensor, attempt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A scene before it is checked for overlaps.

        Args:
            state: random states, int64 [...].
            attempt: number of the attempt, int64, broadcast against `state`.

        Returns:
            shape (1 to 19), color (bits 1 red, 2 green, 4 blue), top and left in pixels, int64
            [..., 3] each.
        """
        draws = torch.arange(_DRAWS, device=state.device)
        bits = random.fold(state[..., None], attempt[..., None] * _DRAWS + draws)
        pick, color, row, column = bits.unflatten(-1, (4, OBJECTS)).unbind(-2)
        shape = self._shape_ids.take(random.below(pick, len(self.shapes)))
        top = random.below(row, FRAME + 1 - self._tables.height.take(shape))
        left = random.below(column, FRAME + 1 - self._tables.width.take(shape))
        return shape, random.below(color, 6) + 1, top, left

    def _accepted(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first attempt of each index without overlap: shape, color, top, left, [B, 3] each."""
        state = random.stream(index, split=self.split, seed=self.seed)
        accepted = torch.empty(4, len(index), OBJECTS, dtype=torch.int64, device=index.device)
        pending = torch.arange(len(index), device=index.device)
        first = 0
        while len(pending):
            attempt = torch.arange(first, first + _ATTEMPTS, device=index.device)
            proposal = torch.stack(self.propose(state[pending, None], attempt))
            free = ~self._tables.overlap(proposal[0], proposal[2], proposal[3])
            winner = free.to(torch.uint8).argmax(dim=1)  # the first of equals on every device
            done = free.any(dim=1).nonzero()[:, 0]
            accepted[:, pending[done]] = proposal[:, done, winner[done]]
            pending = pending[~free.any(dim=1)]
            first += _ATTEMPTS
        shape, color, top, left = accepted
        return shape, color, top, left


def _factors(shape: Tensor, top: Tensor, left: Tensor, color: Tensor) -> dict[str, Tensor]:
    """DeepMind's factors of a batch, the background entity put first."""
    bits = torch.arange(3, device=color.device)
    channels = (color[..., None] >> bits) & 1
    named = {"x": top, "y": left, "shape": shape, "color": channels}
    factors = {
        name: torch.cat([torch.zeros_like(value[:, :1]), value], dim=1).float()
        for name, value in named.items()
    }
    return {**factors, "visibility": torch.ones_like(factors["shape"])}
