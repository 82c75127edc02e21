"""HDF5 files in EfficientMORL's layout.

A group per split ("train", "val", "test") with imgs [N, H, W, C], masks [N, E, H, W, 1] and
optionally factors [N, E, F]. Chunking and compression are free. Accepted are

* imgs of bool, integers or floats, from 0 to 1 or from 0 to 255; `emorl.data.values` says which.
  One channel is shown as grey.
* masks of any number type and scale, at most 256 entities, of which entity 0 is the background.
  A file without masks is not of EfficientMORL's layout, which then does not tell the range.
* factors whose columns are named by the attribute "columns" of the data set (a name comes once
  for each of its components, side by side), or which have the nine columns of EfficientMORL's
  CLEVR files. Columns without a name become one factor called "factors".
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emorl.data.base import Batch
from emorl.data.readers.base import MOST_ENTITIES, FileDataset, label_map
from emorl.data.readers.hdf5_storage import require_stored, slow_reads
from emorl.data.values import LOOKED_AT, ValueRange, decide

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
_LAYOUT = "EfficientMORL's files"
_PROBED = 32  # images that are checked when a file is opened
_PROBED_BYTES = 64 << 20
_LISTED = 12  # names in a complaint


class HDF5Dataset(FileDataset):
    """One split of an HDF5 file; each process opens the file for itself when it first reads.

    Args:
        path: the file.
        split: name of the group.
        value_range: what the images' numbers mean; None lets the file decide, as
            `emorl.data.values` says.

    Raises:
        ValueError: if the file is not HDF5, damaged, not in the layout above, or its images are not
            in their range; the message names what the file has instead.
    """

    def __init__(
        self, path: str | Path, split: str = "train", value_range: ValueRange | None = None
    ) -> None:
        self.path, self.split = Path(path), split
        self.name = self.path.stem
        self._opened: tuple[int, h5py.Group] | None = None
        with _named_errors(self.path), _open(self.path) as file:
            group = _member(file, split)
            if group is None:
                raise ValueError(
                    f"expected a group {split!r}, got {_contents(file)}; --split or data.split "
                    "chooses another"
                )
            if not isinstance(group, h5py.Group):
                raise ValueError(f"expected {split}/imgs, got {_kind(group)}")
            self._inspect(group)
            self.values = decide(
                value_range,
                _range_attribute(group),
                _LAYOUT if self._has_masks else None,
                group["imgs"].dtype,
            )
            self.value_range = self.values.range
            self._check_first(group["imgs"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Sequence[int]) -> tuple[Batch, Tensor | None]:
        """The images at `indices` and their entity masks as stored, [B, E, H, W].

        Raises:
            ValueError: if an image cannot be read or is not in the file's range of values.
        """
        image = self.read_images(indices)
        with _named_errors(self.path):
            entity_masks = self._masks(indices) if self._has_masks else None
            factors = self._factors(indices)
        batch = Batch(
            image=image,
            mask=None if entity_masks is None else label_map(entity_masks),
            factors=factors,
            index=torch.tensor(indices, dtype=torch.int64),
        )
        return batch, entity_masks

    def read_images(self, indices: Sequence[int]) -> Tensor:
        """The images alone, uint8 [B, 3, H, W]; errors as `read`'s."""
        self._require_indices(indices, len(self))
        with _named_errors(self.path):
            images = self.values.to_bytes(self._rows("imgs", indices), partial(_numbered, indices))
        return torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()

    def _inspect(self, group: h5py.Group) -> None:
        images = _data_set(group, "imgs")
        if images is None:
            raise ValueError(f"expected {self.split}/imgs, got {_contents(group)}")
        shape = images.shape
        if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise ValueError(f"expected imgs [N, H, W, 1 or 3], got {list(shape)}")
        self._length, self.image_size = shape[0], (shape[1], shape[2])
        masks, factors = _data_set(group, "masks"), _data_set(group, "factors")
        self._has_masks = masks is not None
        if masks is not None:
            self._inspect_masks(masks.shape)
        self._columns = [] if factors is None else _column_names(factors, self._length)
        read = [stored for stored in (images, masks, factors) if stored is not None]
        for stored in read:
            require_stored(stored)
        if slow := slow_reads(read):
            split = "" if self.split == "train" else f" --split {self.split}"
            cure = f"store it again: emorl data convert {self.path} FILE.h5{split}"
            self.slow = f"{self.path}: {slow}; {cure}"

    def _inspect_masks(self, shape: tuple[int, ...]) -> None:
        if len(shape) not in (4, 5) or (shape[0], *shape[2:4], *shape[4:]) != (
            self._length,
            *self.image_size,
            *(1,) * (len(shape) - 4),
        ):
            height, width = self.image_size
            raise ValueError(
                f"expected masks [{self._length}, E, {height}, {width}, 1], got {list(shape)}"
            )
        if not 1 <= shape[1] <= MOST_ENTITIES:
            raise ValueError(f"expected masks of 1 to {MOST_ENTITIES} entities, got {shape[1]}")

    def _check_first(self, images: h5py.Dataset) -> None:
        """Check the first images, and more where they are so dark that they may mean 0 to 1."""
        together = _PROBED_BYTES // (math.prod(images.shape[1:]) * images.dtype.itemsize)
        together = max(1, min(_PROBED, together))
        brightest, end = 0.0, 0
        while end < min(LOOKED_AT, self._length):
            start, end = end, min(end + together, LOOKED_AT, self._length)
            with _named_errors(self.path, f"{images.name}: "):
                rows = images[start:end]
            self.values.to_bytes(rows, partial(_numbered, range(start, end)))
            brightest = max(brightest, float(rows.max()))
            if self.values.is_settled(brightest):
                return
        self.values.require_bright(brightest, end)

    def _group(self) -> h5py.Group:
        """This process's own handle: HDF5 ones must not cross a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _open(self.path)[self.split])
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
        stored = self._rows("masks", indices)
        if stored.dtype != np.uint8:
            stored = stored.astype(np.float32)
            finite = np.isfinite(stored).reshape(len(stored), -1).all(axis=1)
            if not finite.all():
                where = _numbered(indices, int(finite.argmin()))
                raise ValueError(f"{where}expected masks of finite numbers")
        return torch.from_numpy(stored.reshape(stored.shape[:4]))

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


def _numbered(indices: Sequence[int], row: int) -> str:
    """What a complaint about a row of a batch begins with."""
    return f"image {indices[row]}: "


@contextmanager
def _named_errors(path: Path, where: str = "") -> Iterator[None]:
    """Whatever h5py raises about a file, as one line that begins with the file's name."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        text = " ".join(str(error).split())
        if not text.startswith(f"{path}: "):
            text = f"{path}: {where}{text}"
        raise ValueError(text) from None


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not a readable HDF5 file: {error}") from None


def splits(path: str | Path) -> list[str]:
    """Names of the groups of a file."""
    with _named_errors(Path(path)), _open(Path(path)) as file:
        return [name for name in file if isinstance(_member(file, name), h5py.Group)]


def _member(group: h5py.Group, name: str) -> Any:
    """What a group has under a name; None if that is nothing, or a link that leads nowhere."""
    try:
        return group.get(name)
    except (OSError, RuntimeError):
        return None


def _data_set(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """The numbers that a group has under a name; None if it has nothing there.

    Raises:
        ValueError: if there is something else.
    """
    if name not in group:
        return None
    found = _member(group, name)
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise ValueError(f"expected {group.name}/{name} to be a data set, got {_kind(found)}")
    if found.dtype.kind not in "buif":
        raise ValueError(f"expected {found.name} to hold numbers, got {found.dtype}")
    return found


def _kind(found: Any) -> str:
    """What an object of a file is."""
    if found is None:
        return "a link that leads nowhere"
    if isinstance(found, h5py.Dataset):
        return "an empty data set" if found.shape is None else f"a data set {list(found.shape)}"
    return "a group" if isinstance(found, h5py.Group) else "a data type"


def _contents(group: h5py.Group) -> str:
    names = [f"{n}/" if isinstance(_member(group, n), h5py.Group) else n for n in group]
    shown = [*names[:_LISTED], "..."] if len(names) > _LISTED else names
    return ", ".join(shown) or "nothing"


def _range_attribute(group: h5py.Group) -> Any:
    """The file's "value_range": of the images, else of the split, else of the whole file."""
    for holder in (group["imgs"], group, group.file):
        if "value_range" in holder.attrs:
            return holder.attrs["value_range"]
    return None


def _column_names(factors: h5py.Dataset, length: int) -> list[str]:
    """One name for each column of the factors."""
    shape = factors.shape
    if len(shape) != 3 or shape[0] != length or 0 in shape:
        raise ValueError(f"expected factors [{length}, E, F], got {list(shape)}")
    given = np.ravel(factors.attrs.get("columns", ()))
    columns = [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in given]
    if not columns:
        return list(CLEVR_COLUMNS if shape[2] == len(CLEVR_COLUMNS) else ["factors"] * shape[2])
    if len(columns) != shape[2]:
        raise ValueError(f"expected {shape[2]} names of factors, got {', '.join(columns)}")
    runs = [name for name, _ in itertools.groupby(columns)]
    if len(runs) != len(set(runs)):
        raise ValueError(f"expected a factor's columns side by side, got {', '.join(columns)}")
    return columns
