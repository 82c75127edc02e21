"""The images of a file that have few objects: CLEVR6 of CLEVR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emorl.data.base import Batch, ObjectDataset, as_indices
from emorl.data.readers.base import FileDataset

_BATCH = 64


class FilteredDataset(ObjectDataset):
    """The images with at most some number of objects, in the file's order.

    Visibility counts the background as well, so that CLEVR6 is `sum(visibility) <= 7`. All of a
    file's visibilities are read when it is opened, which of a large compressed TFRecord takes as
    long as inflating it.

    Args:
        source: a file whose factors have the visibility of each entity.
        max_objects: an image's objects at most.

    Raises:
        ValueError: if the file has no visibility, or no such image.
    """

    def __init__(self, source: FileDataset, max_objects: int) -> None:
        if max_objects < 0:
            raise ValueError(f"max_objects: expected at least 0, got {max_objects}")
        self.source, self.max_objects = source, max_objects
        self.name, self.image_size = source.name, source.image_size
        self.value_range, self.slow = source.value_range, source.slow
        self.is_whole = source.is_whole
        batches = [
            range(start, min(start + _BATCH, len(source)))
            for start in range(0, len(source), _BATCH)
        ]
        entities = torch.cat([source.visible(batch) for batch in batches])
        self._kept: list[int] = (entities <= max_objects + 1).nonzero()[:, 0].tolist()
        if not self._kept:
            raise ValueError(f"{source.path}: expected images of at most {max_objects} objects")
        few = f"at most {max_objects} objects, {len(self._kept):,} of {len(entities):,} images"
        self.part = f"{source.part}; {few}" if source.part else few

    def files(self) -> Sequence[Path]:
        """Those of the source."""
        return self.source.files()

    def reading(self) -> dict[str, Any]:
        """The source's, and what is kept of it."""
        return {"source": self.source.reading(), "max_objects": self.max_objects}

    def __len__(self) -> int:
        return len(self._kept)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images at `indices` of those that are kept."""
        indices = as_indices(indices)
        batch = self.source.__getitems__(self._stored(indices))
        return replace(batch, index=torch.tensor(indices, dtype=torch.int64))

    def read_images(self, indices: Sequence[int]) -> Tensor:
        """The images alone."""
        return self.source.read_images(self._stored(indices))

    def _stored(self, indices: Sequence[int]) -> list[int]:
        """The images' places in the file."""
        self._require_indices(indices, len(self))
        return [self._kept[index] for index in indices]
