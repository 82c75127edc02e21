"""The interface of all data sets, and their batches."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from emorl.data.values import ValueRange
from emorl.fields import shown

UNBOUNDED = 2**31
"""Length of a generator that nobody limited; its indices run from 0 to 2**31 - 1."""


@dataclass
class Batch:
    """Images with their masks and factors; all tensors on one device.

    Attributes:
        image: uint8 [B, 3, H, W], 0 to 255.
        mask: label map [B, 1, H, W], 0 = background, 1.. = objects, uint8 or, of a file with more
            than 255 objects, int32; None if unknown.
        factors: by name, float32 [B, E] or [B, E, n] for E entities of which 0 is the background.
        index: int64 [B], the position of each image in its data set.
    """

    image: Tensor
    mask: Tensor | None
    factors: dict[str, Tensor] = field(default_factory=dict)
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.image)

    def apply(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """A batch of `function(tensor)` for each tensor of this one."""
        return Batch(
            image=function(self.image),
            mask=None if self.mask is None else function(self.mask),
            factors={name: function(value) for name, value in self.factors.items()},
            index=function(self.index),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`; the copy is asynchronous where the memory is pinned."""
        return self.apply(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by `DataLoader(pin_memory=True)`."""
        return self.apply(lambda tensor: tensor.pin_memory())


class ObjectDataset(Dataset[dict[str, Any]]):
    """A map-style data set of images made of objects.

    `DataLoader(dataset, batch_sampler=..., collate_fn=collate)` reads whole batches through
    `__getitems__`. Every implementation can be pickled and used in forked or spawned workers.

    Attributes:
        name: what the data are, e.g. "tetrominoes".
        image_size: height and width in pixels.
        value_range: what a file's numbers mean, (0, 1) or (0, 255); None for a generator.
        part: which images of a file or folder the split is, in words, where that is a convention.
        is_whole: whether these are all images of a file or folder, which is not divided into
            splits, whatever split was asked for.
        slow: one line for the user where reading in random order takes very long.
    """

    name: str
    image_size: tuple[int, int]
    value_range: ValueRange | None = None
    part: str | None = None
    is_whole: bool = False
    slow: str | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images; `UNBOUNDED` for a generator without a limit."""

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images at `indices`, in that order; a tensor or an array of NumPy's is taken, too.

        Raises:
            IndexError: if an index is negative or beyond the end.
            ValueError: if these are no whole numbers.
        """

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Batch: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | Batch:
        """One sample: image, mask (left out if unknown), factors, index; or a slice's batch.

        Negative numbers count from the end.
        """
        if isinstance(index, slice):
            return self.__getitems__(range(*index.indices(len(self))))
        number = operator.index(index)  # a list, say, is a TypeError
        number += len(self) if number < 0 else 0
        batch = self.__getitems__([number]).apply(lambda tensor: tensor[0])
        sample: dict[str, Any] = {"image": batch.image}
        if batch.mask is not None:
            sample["mask"] = batch.mask
        return {**sample, "factors": batch.factors, "index": batch.index}

    def files(self) -> Sequence[Path]:
        """The files that it is read from; none for a generator."""
        return ()

    def reading(self) -> dict[str, Any]:
        """What decides its images besides `files`, as plain values: two that are alike read alike.

        Whoever takes an option that changes images adds it here.
        """
        size, values = self.image_size, self.value_range
        return {"name": self.name, "part": self.part, "image_size": size, "value_range": values}

    def before_resizing(self) -> ObjectDataset | None:
        """The same images, cut out but not resized; None if they were not resized.

        Raises:
            ValueError: if they then have several sizes.
        """
        return None

    def read_images(self, indices: Sequence[int]) -> Tensor:
        """The images alone, uint8 [B, 3, H, W]; of files nothing else is then decoded."""
        return self.__getitems__(indices).image

    def count(self, most: int) -> int:
        """The length, but at most `most`: cheap also where counting all takes long."""
        return min(most, len(self))

    def _require_indices(self, indices: Sequence[int], length: int) -> None:
        wrong = next((index for index in indices if not 0 <= index < length), None)
        if wrong is not None:
            raise IndexError(f"{self.name}: index {wrong} outside of 0..{length - 1}")


def as_indices(indices: Sequence[int] | Tensor | NDArray[np.integer[Any]]) -> Sequence[int]:
    """Indices as whole numbers, of whatever kind of sequence.

    Raises:
        ValueError: if they are something else.
    """
    if isinstance(indices, range):
        return indices
    numbers = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(f"indices: expected a sequence of whole numbers, got {shown(indices)}")
    found: list[int] = numbers.tolist()
    return found


def collate(samples: Batch | Sequence[dict[str, Any]]) -> Batch:
    """The `collate_fn` for every `ObjectDataset`: a whole batch passes, samples are stacked."""
    if isinstance(samples, Batch):
        return samples
    first = samples[0]
    return Batch(
        image=torch.stack([sample["image"] for sample in samples]),
        mask=torch.stack([sample["mask"] for sample in samples]) if "mask" in first else None,
        factors={
            name: torch.stack([sample["factors"][name] for sample in samples])
            for name in first["factors"]
        },
        index=torch.stack([sample["index"] for sample in samples]),
    )
