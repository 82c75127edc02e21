"""Base of the readers of files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emorl.data.base import Batch, ObjectDataset, as_indices
from emorl.data.values import PixelValues, numbered

MOST_ENTITIES = 256
"""Masks of an image, whose numbers are the bytes of its label map."""


class FileDataset(ObjectDataset):
    """A data set that is read from a file with one mask per entity.

    Attributes:
        path: of the file.
        values: how its images' numbers are understood.
    """

    path: Path
    values: PixelValues

    @abstractmethod
    def read(self, indices: Sequence[int]) -> tuple[Batch, Tensor | None]:
        """The images at `indices` and their entity masks as stored, [B, E, H, W]."""

    def visible(self, indices: Sequence[int]) -> Tensor:
        """How many entities are visible in the images at `indices`, background included, [B].

        Raises:
            ValueError: if the file does not tell.
        """
        return self._count_visible(self.read(indices)[0].factors, indices)

    def _count_visible(self, factors: Mapping[str, Tensor], indices: Sequence[int]) -> Tensor:
        if "visibility" not in factors:
            known = ", ".join(factors) or "none"
            raise ValueError(f"{self.path}: expected a factor visibility, got {known}")
        visible = factors["visibility"]
        counts = (visible if visible.dim() == 2 else visible.amax(2)).sum(1)
        if not (finite := counts.isfinite()).all():
            where = numbered(indices, int(finite.int().argmin()))
            raise ValueError(
                f"{self.path}: {where}factor visibility: expected finite numbers; mend that image "
                "or leave it out"
            )
        return counts

    def files(self) -> Sequence[Path]:
        """The file."""
        return (self.path,)

    def reading(self) -> dict[str, Any]:
        """Also how the numbers of its images are understood."""
        return {**super().reading(), "values": str(self.values)}

    def describe(self) -> list[str]:
        """What the file is and how it is stored, a line each, for `emorl data check`."""
        return []

    def answers(self) -> list[str]:
        """What is believed of how such files are stored, as `emorl.data.questions` has it."""
        return []

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images at `indices`."""
        indices = as_indices(indices)
        if not indices:
            return self.read([0])[0].apply(lambda tensor: tensor[:0])
        return self.read(indices)[0]


def only_one(names: Sequence[str], what: str) -> str | None:
    """The name of what a file holds; None if there is none.

    Raises:
        ValueError: if there are several, of which any could be meant.
    """
    if len(names) > 1:
        raise ValueError(
            f"expected {what} under one name, got {' and '.join(names)}; which are meant? "
            "rename or leave out the others"
        )
    return names[0] if names else None


def as_float32(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers as float32; larger ones become infinity, which is looked for later."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def label_map(entity_masks: Tensor) -> Tensor:
    """The entity that is strongest at each pixel.

    Args:
        entity_masks: [B, E, H, W], any scale, E up to `MOST_ENTITIES`; entity 0 is the background,
            which also gets the pixels that no mask covers.

    Returns:
        uint8 [B, 1, H, W].
    """
    strongest, *others = entity_masks.unbind(dim=1)
    labels = torch.zeros(strongest.shape, dtype=torch.uint8)
    for label, mask in enumerate(others, start=1):  # argmax over uint8 is a hundred times slower
        labels = torch.where(mask > strongest, label, labels)
        strongest = torch.maximum(mask, strongest)
    return labels[:, None]
