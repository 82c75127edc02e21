"""HDF5 files in EfficientMORL's layout.

A group per split ("train", "val", "test") with imgs [N, H, W, C], masks [N, E, H, W, 1] and
optionally factors [N, E, F]. Chunking and compression are free. Accepted are

* imgs of any number type from 0 to 255, or floats from 0 to 1: floats are taken to be 0 to 1 if
  none of the first 32 images has a value above 1. One channel is shown as grey.
* masks of any number type and scale; entity 0 is the background; optional.
* factors whose columns are named by the attribute "columns" of the data set (a name comes once
  for each of its components, side by side), or which have the nine columns of EfficientMORL's
  CLEVR files. Columns without a name become one factor called "factors".
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emorl.data.base import Batch
from emorl.data.readers.base import FileDataset, label_map

CLEVR_COLUMNS = (
    "x",
    "y",
    "z",
    "rotation",
    "size",
    "material",
    "shape",
    "color",
    "visibility",
)
_PROBE = 32


class HDF5Dataset(FileDataset):
    """One split of an HDF5 file; each process opens the file for itself when it first reads.

    Args:
        path: the file.
        split: name of the group.

    Raises:
        ValueError: if the file is not HDF5, damaged, or not in the layout above; the message
            names what the file has instead.
    """

    def __init__(self, path: str | Path, split: str = "train") -> None:
        self.path, self.split = Path(path), split
        self.name = self.path.stem
        self._opened: tuple[int, h5py.Group] | None = None
        with _open(self.path) as file:
            if split not in file:
                raise ValueError(f"{path}: expected a group {split!r}, got {_contents(file)}")
            self._inspect(file[split])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Sequence[int]) -> tuple[Batch, Tensor | None]:
        """The images at `indices` and their entity masks as stored, [B, E, H, W]."""
        self._require_indices(indices, len(self))
        images = self._rows("imgs", indices)
        if images.dtype != np.uint8:
            scale = 255 if self._unit_range else 1
            images = (images.astype(np.float64) * scale).round().clip(0, 255).astype(np.uint8)
        image = torch.from_numpy(images).permute(0, 3, 1, 2)
        entity_masks = None
        if self._has_masks:
            stored = self._rows("masks", indices)
            stored = stored if stored.dtype == np.uint8 else stored.astype(np.float32)
            entity_masks = torch.from_numpy(stored.reshape(stored.shape[:4]))
        batch = Batch(
            image=image.expand(-1, 3, -1, -1).contiguous(),
            mask=None if entity_masks is None else label_map(entity_masks),
            factors=self._factors(indices),
            index=torch.tensor(indices, dtype=torch.int64),
        )
        return batch, entity_masks

    def _inspect(self, group: h5py.Group) -> None:
        if not isinstance(group, h5py.Group) or "imgs" not in group:
            raise ValueError(f"{self.path}: expected {self.split}/imgs, got {_contents(group)}")
        shape = group["imgs"].shape
        if len(shape) != 4 or shape[3] not in (1, 3) or shape[0] == 0:
            raise ValueError(f"{self.path}: expected imgs [N, H, W, 1 or 3], got {list(shape)}")
        self._length, self.image_size = shape[0], (shape[1], shape[2])
        self._has_masks = "masks" in group
        if self._has_masks:
            self._inspect_masks(group["masks"].shape)
        self._columns = _column_names(group, self._length, self.path)
        self._unit_range = self._probe_range(group["imgs"])

    def _inspect_masks(self, shape: tuple[int, ...]) -> None:
        if len(shape) not in (4, 5) or (shape[0], *shape[2:4], *shape[4:]) != (
            self._length,
            *self.image_size,
            *(1,) * (len(shape) - 4),
        ):
            height, width = self.image_size
            raise ValueError(
                f"{self.path}: expected masks [{self._length}, E, {height}, {width}, 1], "
                f"got {list(shape)}"
            )

    def _probe_range(self, images: h5py.Dataset) -> bool:
        """Whether the images are floats from 0 to 1."""
        with _named_errors(self.path, images):
            first = images[:_PROBE]
        low, high = first.min(), first.max()
        if not (low >= 0 and high <= 255):
            raise ValueError(
                f"{self.path}: expected images from 0 to 255 or 0 to 1, got {low} to {high}"
            )
        return bool(first.dtype.kind == "f" and high <= 1)

    def _group(self) -> h5py.Group:
        """This process's own handle: HDF5 ones must not cross a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _open(self.path)[self.split])
        return self._opened[1]

    def _rows(self, name: str, indices: Sequence[int]) -> NDArray[Any]:
        """Rows of a data set; a loop, since h5py's own selection by a list is much slower."""
        stored = self._group()[name]
        consecutive = all(b - a == 1 for a, b in itertools.pairwise(indices))
        with _named_errors(self.path, stored):
            if indices and consecutive:
                rows: NDArray[Any] = stored[indices[0] : indices[-1] + 1]
                return rows
            rows = np.empty((len(indices), *stored.shape[1:]), dtype=stored.dtype)
            for row, index in enumerate(indices):
                rows[row] = stored[index]
        return rows

    def _factors(self, indices: Sequence[int]) -> dict[str, Tensor]:
        if not self._columns:
            return {}
        table = torch.from_numpy(self._rows("factors", indices).astype(np.float32))
        factors: dict[str, Tensor] = {}
        start = 0
        for name, group in itertools.groupby(self._columns):
            width = len(list(group))
            factors[name] = table[..., start] if width == 1 else table[..., start : start + width]
            start += width
        return factors


@contextmanager
def _named_errors(path: Path, stored: h5py.Dataset) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: {stored.name}: {error}") from None


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not a readable HDF5 file: {error}") from None


def splits(path: str | Path) -> list[str]:
    """Names of the groups of a file."""
    with _open(Path(path)) as file:
        return [name for name in file if isinstance(file[name], h5py.Group)]


def _contents(group: h5py.Group) -> str:
    if not isinstance(group, h5py.Group):
        return f"a data set {list(group.shape)}"
    names = [f"{name}/" if isinstance(group[name], h5py.Group) else name for name in group]
    return ", ".join(names) or "nothing"


def _column_names(group: h5py.Group, length: int, path: Path) -> list[str]:
    """One name for each column of the factors; none without factors."""
    if "factors" not in group:
        return []
    shape = group["factors"].shape
    if len(shape) != 3 or shape[0] != length:
        raise ValueError(f"{path}: expected factors [{length}, E, F], got {list(shape)}")
    columns = [str(name) for name in group["factors"].attrs.get("columns", ())]
    if not columns:
        return list(CLEVR_COLUMNS if shape[2] == len(CLEVR_COLUMNS) else ["factors"] * shape[2])
    if len(columns) != shape[2]:
        raise ValueError(f"{path}: expected {shape[2]} names of factors, got {', '.join(columns)}")
    return columns
