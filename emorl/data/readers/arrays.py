"""NumPy's files: an array of images (.npy), or an archive of images, masks and factors (.npz).

Images [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W] are called image, images or imgs in an
archive; masks or label maps mask, masks, label or labels. The masks of NAME.npy are NAME_masks.npy,
if there is such a file. Other arrays of numbers [N, ...] of up to three axes are factors. A .npy
file is read where it is needed; an archive is inflated into memory, once in each process. Such a
file is one split.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from emorl.data.base import Batch
from emorl.data.readers.axes import (
    arranged,
    image_axes,
    is_label_map,
    labels_of,
    mask_axes,
    require_finite_masks,
)
from emorl.data.readers.base import MOST_ENTITIES, FileDataset, as_float32, label_map, only_one
from emorl.data.values import LOOKED_AT, ValueRange, decide
from emorl.fields import shown
from emorl.memory import require_memory
from emorl.paths import real, require_regular

_IMAGES = ("image", "images", "imgs")
_MASKS = ("mask", "masks", "label", "labels")
_ZIP_MAGIC = b"PK"
_INFLATES = 1032  # deflate's most bytes out of one
_LENGTHS = {(1, 0): 2, (2, 0): 4, (3, 0): 4}  # of a header's length, in bytes, by version
_TOGETHER = 32  # images that are looked at in one piece

Arrays = dict[str, NDArray[Any]]


class ArrayDataset(FileDataset):
    """The images of a .npy or .npz file.

    Args:
        path: the file.
        value_range: what the numbers mean; None lets the file decide, as `emorl.data.values` says.

    Raises:
        ValueError: naming the file, if it is damaged, has no images, or these are not in their
            range.
    """

    def __init__(self, path: str | Path, value_range: ValueRange | None = None) -> None:
        self.path = Path(path)
        self.name, self.is_whole = self.path.stem, True
        self._opened: Arrays | None = None
        with _named(self.path):
            self._is_archive = _starts_as_archive(self.path)
            arrays = self._arrays()
            self._images = only_one([name for name in _IMAGES if name in arrays], "images")
            if self._images is None:
                expected = f"an array {' or '.join(_IMAGES)}"
                raise ValueError(f"expected {expected}, got {', '.join(arrays) or 'nothing'}")
            images = arrays[self._images]
            self._axes = image_axes(images.shape, self._images)
            sizes = dict(zip(self._axes, images.shape, strict=True))
            self._length, self.image_size = sizes["N"], (sizes["H"], sizes["W"])
            self._masks = _masks_among(arrays, sizes)
            if self._masks is not None:
                self._inspect_masks(arrays[self._masks], sizes)
            self.values = decide(value_range, None, None, images.dtype)
            self.value_range = self.values.range
            self.values.check_first(_first(images))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return self._length

    def files(self) -> Sequence[Path]:
        """The file, and that of its masks."""
        beside = None if self._is_archive else _beside(self.path)
        return [self.path] if beside is None else [self.path, beside]

    def describe(self) -> list[str]:
        """The layout, and each array."""
        with _named(self.path):
            arrays = self._arrays()
        kind = "archive" if self._is_archive else "array"
        stored = [f"stored: {name} {a.dtype} {list(a.shape)}" for name, a in arrays.items()]
        return [f"layout: NumPy {kind}", *stored]

    def read(self, indices: Sequence[int]) -> tuple[Batch, Tensor | None]:
        """The images at `indices`, and masks of entities if such are stored, [B, E, H, W].

        Raises:
            ValueError: if an image is not in the file's range of values.
        """
        image = self.read_images(indices)
        labels, entities = None, None
        with _named(self.path):
            arrays = self._arrays()
            if self._masks is not None:
                rows = arrays[self._masks][list(indices)]
                if self._most is None:
                    rows = rows if rows.dtype == np.uint8 else as_float32(rows)
                    require_finite_masks(rows, indices)
                    entities = torch.from_numpy(arranged(rows, self._mask_axes, "NEHW"))
                    labels = label_map(entities)
                else:
                    stored = arranged(rows, self._mask_axes, "NHW")
                    labels = torch.from_numpy(labels_of(stored, self._most))[:, None]
        batch = Batch(image, labels, self._factors(indices), torch.tensor(indices).long())
        return batch, entities

    def read_images(self, indices: Sequence[int]) -> Tensor:
        """The images alone, uint8 [B, 3, H, W]; errors as `read`'s."""
        self._require_indices(indices, len(self))
        with _named(self.path):
            rows = self._arrays()[self._images or ""][list(indices)]
            images = self.values.to_bytes(rows, indices)
        pixels = torch.from_numpy(np.ascontiguousarray(arranged(images, self._axes, "NCHW")))
        return pixels.expand(-1, 3, -1, -1).contiguous()

    def _inspect_masks(self, masks: NDArray[Any], sizes: dict[str, int]) -> None:
        """Tell label maps from masks of entities, and fix the type of labels."""
        known = {axis: sizes[axis] for axis in "NHW"}
        entities, labels = mask_axes(masks.shape, known)
        if entities and labels:
            entities, labels = (
                (None, labels) if is_label_map(masks[:LOOKED_AT]) else (entities, None)
            )
        axes = entities or labels
        if axes is None or masks.dtype.kind not in "buif":
            raise ValueError(
                f"expected {self._masks} [{sizes['N']}, E, {sizes['H']}, {sizes['W']}] or label "
                f"maps without E, got {[*masks.shape]} of {masks.dtype}"
            )
        self._mask_axes, self._most = axes, None
        if entities is None:
            small = int(np.iinfo(np.uint8).max)
            self._most = small if masks.max() <= small else int(np.iinfo(np.int32).max)
        elif masks.shape[axes.index("E")] > MOST_ENTITIES:
            raise ValueError(f"expected masks of up to {MOST_ENTITIES} entities")

    def _factors(self, indices: Sequence[int]) -> dict[str, Tensor]:
        found = {}
        for name, array in self._arrays().items():
            is_factor = array.ndim in (1, 2, 3) and len(array) == self._length
            if (
                name in (self._images, self._masks)
                or not is_factor
                or array.dtype.kind not in "buif"
            ):
                continue
            rows = torch.from_numpy(as_float32(array[list(indices)]))
            if rows.dim() == 1:
                rows = rows[:, None]
            found[name] = rows[..., 0] if rows.dim() == 3 and rows.shape[2] == 1 else rows
        return found

    def _arrays(self) -> Arrays:
        if self._opened is None:
            self._opened = _archive(self.path) if self._is_archive else _files(self.path)
        return self._opened


def _files(path: Path) -> Arrays:
    """An array that stays in its file, and that of its masks."""
    arrays = {_IMAGES[0]: _mapped(path)}
    beside = _beside(path)
    if beside is not None:
        with _named(beside):
            arrays[_MASKS[0]] = _mapped(beside)
    return arrays


def _beside(path: Path) -> Path | None:
    """The file of an array's masks: beside it, else beside what a link leads to."""
    places = [each.with_name(f"{each.stem}_masks{each.suffix}") for each in (path, real(path))]
    return next((place for place in places if os.path.lexists(place)), None)


def _mapped(path: Path) -> NDArray[Any]:
    require_regular(path)
    with path.open("rb") as file:
        _declared(file, os.path.getsize(path), path.name)
    mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _starts_as_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC


def _archive(path: Path) -> Arrays:
    """All arrays of an archive that are numbers."""
    if not zipfile.is_zipfile(path):
        raise ValueError("a truncated archive, or a damaged one: the list of its arrays is missing")
    arrays: Arrays = {}
    with zipfile.ZipFile(path) as archive:
        needed = 0
        names = [member.filename.removesuffix(".npy") for member in archive.infolist()]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"expected each array once, got several {shown(twice[0])}")
        for member in archive.infolist():
            with archive.open(member) as file:
                most = min(member.file_size, _INFLATES * (member.compress_size + 1))
                needed += _declared(file, most, member.filename)
        require_memory(needed, "its arrays")
        for name, member in zip(names, archive.infolist(), strict=True):
            with archive.open(member) as file:
                arrays[name] = npy.read_array(file, allow_pickle=False)
    return arrays


def _declared(file: IO[bytes], present: int, name: str) -> int:
    """The bytes that an array declares; numpy itself takes memory for them before it looks.

    Raises:
        ValueError: if it is no array, of Python objects, or declares more than there is.
    """
    version = npy.read_magic(file)
    if version not in _LENGTHS:
        raise ValueError(f"{name}: expected version 1, 2 or 3 of NumPy's format, got {version[0]}")
    length = file.read(_LENGTHS[version])
    if (header := int.from_bytes(length, "little")) > present:
        raise ValueError(
            f"{name} declares a header of {header} bytes, but only {present} are stored"
        )
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(io.BytesIO(length + file.read(header)))
    if dtype.hasobject:
        raise ValueError(f"{name}: pickled Python objects, which are not read")
    declared = math.prod(shape) * dtype.itemsize
    if declared > present:
        raise ValueError(f"{name} declares {declared} bytes, but only {present} are stored")
    return declared


def _first(images: NDArray[Any]) -> Iterator[tuple[range, NDArray[Any]]]:
    """The first images, a few at a time, with their indices."""
    for start in range(0, min(LOOKED_AT, len(images)), _TOGETHER):
        rows = images[start : min(start + _TOGETHER, LOOKED_AT)]
        yield range(start, start + len(rows)), rows


def _masks_among(arrays: Arrays, sizes: dict[str, int]) -> str | None:
    """The array of masks; of several, the only one of such a shape: labels [N] are a factor."""
    known = {axis: sizes[axis] for axis in "NHW"}
    named = [name for name in _MASKS if name in arrays]
    shaped = [name for name in named if any(mask_axes(arrays[name].shape, known))]
    return only_one(shaped or named[:1], "masks")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever NumPy or zipfile raises about a file, as one line that begins with its name."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # damaged headers are parsed as Python, and raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(text if text.startswith(f"{path.parent}") else f"{path}: {text}") from None
