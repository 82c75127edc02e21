"""Pictures of discs, which stand in for data sets that nobody has at hand: same sizes and names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from emorl.data import Batch, ObjectDataset

DIFFERENT = 16  # pictures: enough for a file, and soon drawn
_NOISE = 2  # grey levels, as rendering leaves them: they decide how well a file is compressed


class Discs(ObjectDataset):
    """Coloured discs on grey, the last ones in front, with their label maps.

    After `DIFFERENT` images they come again.

    Args:
        name: of the data set they stand in for.
        image_size: height and width in pixels.
        entities: with the background.
        factors: components of each factor, by name.
        length: images.
        noise: whether every pixel has some.
    """

    def __init__(
        self,
        name: str,
        image_size: tuple[int, int],
        entities: int,
        factors: dict[str, int],
        length: int,
        noise: bool = False,
    ) -> None:
        self.name, self.image_size = name, image_size
        self._entities, self._factors = entities, factors
        self._length, self._noise = length, noise
        self._drawn = lru_cache(self._picture)

    def __len__(self) -> int:
        return self._length

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images at `indices`."""
        self._require_indices(indices, len(self))
        pictures, masks = zip(*(self._drawn(i % DIFFERENT) for i in indices), strict=True)
        shapes = {
            name: (len(indices), self._entities, *((width,) if width > 1 else ()))
            for name, width in self._factors.items()
        }
        factors = {name: torch.ones(shape) for name, shape in shapes.items()}
        return Batch(torch.stack(pictures), torch.stack(masks), factors, torch.tensor(indices))

    def _picture(self, index: int) -> tuple[Tensor, Tensor]:
        """An image, uint8 [3, H, W], and its label map, uint8 [1, H, W]."""
        drawn = torch.Generator().manual_seed(index)
        height, width = self.image_size
        row, column = torch.arange(height)[:, None], torch.arange(width)
        image = (100 + 60 * row / height).expand(3, height, width).clone()
        mask = torch.zeros(1, height, width, dtype=torch.uint8)
        for label in range(1, self._entities):
            top, left, reach, *colour = torch.rand(6, generator=drawn).tolist()
            radius = height * (0.06 + 0.08 * reach)
            inside = (row - height * top) ** 2 + (column - width * left) ** 2 < radius**2
            image[:, inside] = 55 + 200 * torch.tensor(colour)[:, None]
            mask[:, inside] = label
        if self._noise:
            image += torch.randint(-_NOISE, _NOISE + 1, image.shape, generator=drawn)
        return image.clamp(0, 255).byte(), mask
