"""HDF5 files in the layouts of `emorl.data.readers.hdf5_layouts`.

Chunking and compression are free. Accepted are

* images of bool, integers or floats, from 0 to 1 or from 0 to 255; `emorl.data.values` says which.
  One channel is shown as grey.
* masks of any number type and scale, at most 256 entities, of which entity 0 is the background;
  or label maps of whole numbers. A file without a mask per entity is not of EfficientMORL's
  layout, which then does not tell the range.
* factors of any number type, which become float32.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emorl.data.base import Batch
from emorl.data.readers import hdf5_layouts
from emorl.data.readers.axes import arranged, labels_of, require_finite_masks
from emorl.data.readers.base import FileDataset, as_float32, label_map
from emorl.data.readers.hdf5_layouts import DSPRITES, EFFICIENT_MORL, Layout, Table
from emorl.data.readers.hdf5_members import named_errors, open_file
from emorl.data.readers.hdf5_sources import files_of
from emorl.data.readers.hdf5_storage import in_words, slow_reads
from emorl.data.splits import needed, published, shown
from emorl.data.values import LOOKED_AT, UNIT, PixelValues, ValueRange, decide, numbered

_PROBED = 32  # images that are checked when a file is opened
_PROBED_BYTES = 64 << 20


class HDF5Dataset(FileDataset):
    """One split of an HDF5 file; each process opens the file for itself when it first reads.

    Args:
        path: the file.
        split: name of the group; a file with its arrays at the root is divided as
            `emorl.data.splits` says.
        value_range: what the images' numbers mean; None lets the file decide, as
            `emorl.data.values` says.

    Raises:
        ValueError: if the file is not HDF5, damaged, in none of the layouts, or its images are not
            in their range; the message names what the file has instead.
    """

    def __init__(
        self, path: str | Path, split: str = "train", value_range: ValueRange | None = None
    ) -> None:
        self.path, self.split = Path(path), split
        self.name = self.path.stem
        self._opened: tuple[int, h5py.Group] | None = None
        with named_errors(self.path), open_file(self.path) as file:
            self.layout = hdf5_layouts.find_layout(file, split)
            self.image_size = self.layout.image_size
            self._stored = self._find_images()
            self.is_whole = self.layout.group == "/" and self.part is None
            group = file[self.layout.group]
            self.values = _values(self.layout, group, value_range)
            self.value_range = self.values.range
            read = [group[name] for name in self.layout.names]
            self._files = sorted({self.path, Path(group.file.filename)}.union(*map(files_of, read)))
            self._tell_slow(read)
            self.values.check_first(self._first(group[self.layout.images]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return len(self._stored)

    def files(self) -> Sequence[Path]:
        """The file, and those that its links and virtual data sets lead to."""
        return self._files

    def reading(self) -> dict[str, Any]:
        """Also the group; several may lie in one file."""
        return {**super().reading(), "group": self.layout.group}

    def _find_images(self) -> range:
        """Which of the stored images are the split."""
        everything = range(self.layout.length)
        if self.layout.group != "/" or len(everything) < max(needed(self.layout.name), 1):
            return everything
        images = published(self.layout.name, self.split)
        if images is None:
            return everything
        self.part = shown(self.split, images)
        return images

    def read(self, indices: Sequence[int]) -> tuple[Batch, Tensor | None]:
        """The images at `indices` and their entity masks as stored, [B, E, H, W].

        Raises:
            ValueError: if an image cannot be read or is not in the file's range of values.
        """
        image = self.read_images(indices)
        mask, entity_masks = None, None
        stored = [self._stored[index] for index in indices]
        with named_errors(self.path):
            if self.layout.most_label is not None:
                mask = self._labels(stored, self.layout.most_label)
            elif self.layout.masks is not None:
                entity_masks = self._masks(stored)
                mask = label_map(entity_masks)
            factors = self._factors(stored)
        batch = Batch(image, mask, factors, torch.tensor(indices, dtype=torch.int64))
        return batch, entity_masks

    def read_images(self, indices: Sequence[int]) -> Tensor:
        """The images alone, uint8 [B, 3, H, W]; errors as `read`'s."""
        self._require_indices(indices, len(self))
        stored = [self._stored[index] for index in indices]
        with named_errors(self.path):
            rows = self._rows(self.layout.images, stored)
            images = self.values.to_bytes(rows, stored)
        images = arranged(images, self.layout.image_axes, "NCHW")
        return torch.from_numpy(images).expand(-1, 3, -1, -1).contiguous()

    def visible(self, indices: Sequence[int]) -> Tensor:
        """As for any file; only factors are read."""
        with named_errors(self.path):
            stored = [self._stored[index] for index in indices]
            return self._count_visible(self._factors(stored), stored)

    def describe(self) -> list[str]:
        """The layout, and how each data set is stored."""
        with named_errors(self.path):
            group = self._group()
            stored = [in_words(group[name], name) for name in self.layout.names]
        return [f"layout: {self.layout.name}", *(f"stored: {line}" for line in stored)]

    def answers(self) -> list[str]:
        """Whether EfficientMORL's files hold bytes, which is not documented."""
        if self.layout.name != EFFICIENT_MORL:
            return []
        with named_errors(self.path):
            dtypes = [self._group()[name].dtype for name in self.layout.names[:2]]
        passed = "PASS" if {*dtypes} == {np.dtype(np.uint8)} else "FAIL"
        return [f"{passed} imgs and masks are bytes: {dtypes[0]} and {dtypes[1]}"]

    def _tell_slow(self, read: Sequence[h5py.Dataset]) -> None:
        if slow := slow_reads(read):
            split = "" if self.split == "train" else f" --split {self.split}"
            cure = f"store it again: emorl data convert {self.path} --out FILE.h5{split}"
            self.slow = f"{self.path}: {slow}; {cure}"

    def _first(self, images: h5py.Dataset) -> Iterator[tuple[range, NDArray[Any]]]:
        """The first images of the split, as many at a time as have 64 MB, with their indices."""
        together = _PROBED_BYTES // (math.prod(images.shape[1:]) * images.dtype.itemsize)
        together = max(1, min(_PROBED, together))
        looked_at = self._stored[:LOOKED_AT]
        for start in range(0, len(looked_at), together):
            indices = looked_at[start : start + together]
            with named_errors(self.path, f"{images.name}: "):
                rows = images[indices.start : indices.stop]
            yield indices, rows

    def _group(self) -> h5py.Group:
        """This process's own handle: HDF5 ones must not cross a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), open_file(self.path)[self.layout.group])
        return self._opened[1]

    def _rows(self, name: str, indices: Sequence[int]) -> NDArray[Any]:
        """Rows of a data set; a loop, since h5py's own selection by a list is much slower."""
        stored = self._group()[name]
        if indices and all(b - a == 1 for a, b in itertools.pairwise(indices)):
            with suppress(OSError):  # the loop tells which row it is
                together: NDArray[Any] = stored[indices[0] : indices[-1] + 1]
                return together
        rows = np.empty((len(indices), *stored.shape[1:]), dtype=stored.dtype)
        row = 0
        try:
            for row, index in enumerate(indices):
                rows[row] = stored[index]
        except OSError as error:
            raise ValueError(f"{stored.name}: image {indices[row]}: {error}") from None
        return rows

    def _masks(self, indices: Sequence[int]) -> Tensor:
        """Entity masks as stored, uint8 or float32 [B, E, H, W]."""
        assert self.layout.masks is not None
        stored = self._rows(self.layout.masks, indices)
        if stored.dtype != np.uint8:
            stored = as_float32(stored)
            require_finite_masks(stored, indices)
        return torch.from_numpy(arranged(stored, self.layout.mask_axes, "NEHW"))

    def _labels(self, indices: Sequence[int], most: int) -> Tensor:
        """The label map, uint8 or int32 [B, 1, H, W]."""
        assert self.layout.masks is not None
        stored = arranged(self._rows(self.layout.masks, indices), self.layout.mask_axes, "NCHW")
        try:
            labels = labels_of(stored, most)
        except ValueError:
            for row, rows in enumerate(stored):
                with named_errors(self.path, numbered(indices, row)):
                    labels_of(rows, most)
            raise
        return torch.from_numpy(labels)

    def _factors(self, indices: Sequence[int]) -> dict[str, Tensor]:
        factors: dict[str, Tensor] = {}
        for table in self.layout.tables:
            factors |= _named_factors(table, self._rows(table.name, indices))
        return factors


def splits(path: str | Path) -> list[str]:
    """Names of the groups of a file that has no arrays at its root."""
    with named_errors(Path(path)), open_file(Path(path)) as file:
        return hdf5_layouts.splits(file)


def _values(layout: Layout, group: h5py.Group, asked: ValueRange | None) -> PixelValues:
    """What the images' numbers mean."""
    images = group[layout.images]
    attribute = _range_attribute(images, group)
    if layout.name == DSPRITES and asked is None and attribute is None:
        return PixelValues(UNIT, f"as {DSPRITES} holds them; stored as {images.dtype}", told=True)
    known = EFFICIENT_MORL if layout.name == EFFICIENT_MORL else None
    return decide(asked, attribute, known, images.dtype)


def _range_attribute(images: h5py.Dataset, group: h5py.Group) -> Any:
    """The file's "value_range": of the images, else of the split, else of the whole file."""
    for holder in (images, group, group.file):
        if "value_range" in holder.attrs:
            return holder.attrs["value_range"]
    return None


def _named_factors(table: Table, rows: NDArray[Any]) -> dict[str, Tensor]:
    """Rows of a table by name, [B, E] or [B, E, n]; entity 0 of an only object is zero."""
    numbers = torch.from_numpy(as_float32(rows))
    if table.of_one_object:
        numbers = torch.stack([torch.zeros_like(numbers), numbers], dim=1)
    numbers = numbers.reshape(*numbers.shape[:2], len(table.columns))
    factors: dict[str, Tensor] = {}
    start = 0
    for name, group in itertools.groupby(table.columns):
        width = len(list(group))
        factors[name] = numbers[..., start] if width == 1 else numbers[..., start : start + width]
        start += width
    return factors
