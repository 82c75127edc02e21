"""Folders of pictures, with or without label maps.

The files of a folder and its subfolders, in the order of their names. Label maps are PNGs: those of
FOLDER in a folder FOLDER_masks, under the same names (`FOLDER/a/b.jpg`, `FOLDER_masks/a/b.png`), or
beside the pictures (`b.jpg`, `b_mask.png`). Either all pictures have one or none has.

Subfolders that are called train, val and test are the splits, if there are no others. Else a
picture belongs to a split by its name alone, so that further pictures move none.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emorl.data.base import Batch
from emorl.data.random import SPLITS
from emorl.data.readers.base import FileDataset
from emorl.data.readers.label_maps import masks_beside, masks_of, require_own
from emorl.data.readers.pictures import (
    ENDINGS,
    framed,
    read_colours,
    read_header,
    read_headers,
    read_labels,
    require_bright,
)
from emorl.data.splits import ALL
from emorl.data.transforms import CENTRE, Box, Shape, centred, cut, method_of, shape_of
from emorl.data.values import BYTES, LOOKED_AT, PixelValues, ValueRange

_SPLIT_IN = 10  # parts, of which one is "test", one "val", the rest "train"
_ENDING = re.compile(r"\.[a-z][a-z0-9]{1,4}")
_NAMED = 5  # endings
_FINER = 2  # times the asked size, at which a JPEG may be decoded before it is resized


class PictureFiles(FileDataset):
    """Listed picture files, each framed to the same size.

    Pictures keep their aspect: the largest region in the middle (of the crop, if one is given) with
    the aspect of `size` is resized to it. Without `size` all must have the same size.

    Args:
        path: of the folder.
        pictures: the files.
        masks: the label map of each picture; none at all if there are none.
        crop: as in `emorl.data.transforms.cut`.
        size: height and width; one number for squares.
        value_range: what the numbers mean, if not what their format says.
        lenient: whether the first that cannot be used are an error only when they are read.

    Raises:
        ValueError: naming the file, if one of the first cannot be used.
    """

    layout = "folder of pictures"

    def __init__(
        self,
        path: Path,
        pictures: Sequence[str],
        masks: Sequence[str],
        crop: str | Sequence[int] | None,
        size: int | Sequence[int] | None,
        value_range: ValueRange | None,
        *,
        lenient: bool = False,
    ) -> None:
        self.path, self.name = path, path.name
        self.pictures, self.masks, self.crop = [*pictures], [*masks], crop
        self._shape = None if size is None else shape_of(size)
        self._resizes = self._shape is not None
        self._enough: Shape | None = None
        if self._shape is not None and crop in (None, CENTRE):  # a given crop counts all pixels
            self._enough = _FINER * self._shape[0], _FINER * self._shape[1]
        told = value_range is not None
        reason = "as value_range says" if told else "as their format says"
        self.values = PixelValues(value_range or BYTES, reason, told=True)
        self._asked = self.values if told else None
        headers = read_headers(self.pictures[:LOOKED_AT], lenient=lenient)
        first, header = next(iter(headers.items()))
        self.image_size = self._shape or _cropped(first, header.shape, crop)
        if not lenient:
            for picture, header in headers.items():
                self._frame(picture, header.shape)
        if not told:
            require_bright(headers, lenient=lenient)
        maps = read_headers(self.masks[:LOOKED_AT], lenient=lenient)
        deep = any(header.is_16_bit for header in maps.values())
        self._most = np.iinfo(np.int32 if deep else np.uint8).max

    def __len__(self) -> int:
        return len(self.pictures)

    def files(self) -> Sequence[Path]:
        """The pictures and label maps."""
        return [Path(name) for name in (*self.pictures, *self.masks)]

    def reading(self) -> dict[str, Any]:
        """Also how each picture is framed."""
        return {**super().reading(), "crop": self.crop, "size": self._shape}

    def before_resizing(self) -> Self | None:
        """The region of each picture that is resized; None without `size`.

        Raises:
            ValueError: if these regions have several sizes, as the first pictures tell; a later one
                of another size is refused when it is read.
        """
        if self._shape is None:
            return None
        first = self.pictures[:LOOKED_AT]
        sizes = {_size(self._frame(name, read_header(name).shape)): name for name in first}
        if len(sizes) > 1:
            one, other, *_ = sizes.values()
            raise ValueError(
                f"{self.path}: expected pictures of one size to compare them as they were before "
                f"they are resized, got several: {one} and {other} differ"
            )
        whole = copy.copy(self)
        whole._resizes, whole._enough = False, None
        (whole.image_size,) = sizes
        return whole

    def describe(self) -> list[str]:
        """The layout, and whether there are label maps."""
        return [f"layout: {self.layout}, {'with' if self.masks else 'without'} label maps"]

    def read(self, indices: Sequence[int]) -> tuple[Batch, Tensor | None]:
        """The pictures at `indices` with their label maps; there are no masks of entities.

        Raises:
            ValueError: if a file is damaged, not in its range of values, or of another size.
        """
        if not len(indices):
            return self.__getitems__(indices), None
        self._require_indices(indices, len(self))
        read = [self._read(index) for index in indices]
        images = torch.from_numpy(np.stack([image for image, _ in read])).permute(0, 3, 1, 2)
        labels = [label for _, label in read if label is not None]
        batch = Batch(
            image=images.contiguous(),
            mask=torch.from_numpy(np.stack(labels))[:, None] if labels else None,
            factors=self._factors(indices),
            index=torch.tensor(indices, dtype=torch.int64),
        )
        return batch, None

    def read_images(self, indices: Sequence[int]) -> Tensor:
        """The pictures alone, uint8 [B, 3, H, W]; errors as `read`'s."""
        if not len(indices):
            return super().read_images(indices)
        self._require_indices(indices, len(self))
        images = np.stack([self._framed_picture(self.pictures[index]) for index in indices])
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    @abstractmethod
    def _factors(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Factors by name."""

    def _read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.generic] | None]:
        picture = self.pictures[index]
        if not self.masks:
            return self._framed_picture(picture), None
        full = read_header(picture).shape
        labels = read_labels(self.masks[index], full, self._most)
        box = self._frame(picture, full)
        return self._framed_picture(picture), framed(labels, box, self.image_size, "nearest")

    def _framed_picture(self, picture: str) -> NDArray[np.uint8]:
        pixels = read_colours(picture, self._asked, self._enough)
        box = self._frame(picture, (pixels.shape[0], pixels.shape[1]))
        return framed(pixels, box, self.image_size, method_of(self.crop))

    def _frame(self, picture: str, full: Shape) -> Box:
        try:
            box = cut(full, self.crop, self._shape)
        except ValueError as error:
            raise ValueError(f"{picture}: {error}") from None
        if self._shape is not None:
            box = centred(box, self._shape)
        if not self._resizes and (found := _size(box)) != self.image_size:
            height, width = self.image_size
            raise ValueError(
                f"{picture}: expected {height}x{width} pixels as the first picture has, got "
                f"{found[0]}x{found[1]}; data.size (--size) resizes all to the same"
            )
        return box


class ImageFolder(PictureFiles):
    """A folder of pictures, as the module says.

    Args:
        path: the folder.
        split: "train", "val", "test" or "all".
        crop: as in `emorl.data.transforms.cut`.
        size: height and width; one number for squares.
        value_range: what the numbers mean, if not what their format says.
        lenient: as of `PictureFiles`.

    Raises:
        ValueError: if the folder has no picture of the split, label maps for some pictures alone,
            or a file that cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        crop: str | Sequence[int] | None = None,
        size: int | Sequence[int] | None = None,
        value_range: ValueRange | None = None,
        *,
        lenient: bool = False,
    ) -> None:
        path = Path(os.path.abspath(path))
        pictures, masks, total = _listed(path, split)
        super().__init__(path, pictures, masks, crop, size, value_range, lenient=lenient)
        self.is_whole = split == ALL
        if len(pictures) < total:
            self.part = f"{split}: {len(pictures):,} of {total:,} pictures"

    def describe(self) -> list[str]:
        """Also which other files the folder holds."""
        others = other_files(self.path)
        return [*super().describe(), *([f"passed over: {others}"] if others else [])]

    def _factors(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {}


def _size(box: Box) -> Shape:
    return box[1] - box[0], box[3] - box[2]


def find_pictures(folder: Path) -> list[str]:
    """The pictures below a folder, by name, with "/" between their parts.

    What is hidden, links to folders, and label maps beside pictures are left out.

    Raises:
        ValueError: if there is no such folder, or no picture in it.
    """
    names = _picture_files(folder)
    maps = {*masks_beside(names).values()}
    return [name for name in names if name not in maps]


def other_files(folder: Path) -> str:
    """The files below a folder that are no pictures, by ending: "2 .gif, 1 other"; "" for none.

    What is hidden and links to folders are not counted.
    """
    endings = Counter(path.suffix.lower() for path in _files(folder))
    others = {ending: n for ending, n in endings.items() if ending not in ENDINGS}
    usual = [ending for ending in others if _ENDING.fullmatch(ending)]
    named = sorted(usual, key=lambda ending: (-others[ending], ending))[:_NAMED]
    rest = sum(others.values()) - sum(others[ending] for ending in named)
    told = [f"{others[ending]} {ending}" for ending in named]
    return ", ".join([*told, *([f"{rest} other{'s' * (rest > 1)}"] if rest else [])])


def shapes_of(
    folder: str | Path, split: str = "train", crop: str | Sequence[int] | None = None
) -> list[Shape]:
    """Heights and widths of the first pictures of a split, cropped.

    Raises:
        ValueError: as `ImageFolder` does.
    """
    pictures, _, _ = _listed(Path(os.path.abspath(folder)), split)
    return [_cropped(p, read_header(p).shape, crop) for p in pictures[:LOOKED_AT]]


def split_of(name: str) -> str:
    """The split that a picture belongs to, by its name: one in ten is "test", one "val"."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return {0: "test", 1: "val"}.get(int.from_bytes(digest[:8], "big") % _SPLIT_IN, "train")


def _picture_files(folder: Path) -> list[str]:
    """All files below a folder that are called as pictures are, label maps too."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of pictures, got no folder")
    found = [path for path in _files(folder) if path.suffix.lower() in ENDINGS]
    if not found:
        others = other_files(folder)
        got = f"; it holds {others}" if others else ""
        raise ValueError(f"{folder}: a folder without pictures ({', '.join(ENDINGS)}){got}")
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, without what is hidden."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(place, name)
            if name[0] != "." and path.is_file():
                yield path


def _listed(path: Path, split: str) -> tuple[list[str], list[str], int]:
    """The pictures of a split, their label maps, if they have any, and how many all splits have."""
    files = _picture_files(path)
    beside = masks_beside(files)
    maps = {*beside.values()}
    names = [name for name in files if name not in maps]
    chosen = _of_split(path, names, split)
    masks = masks_of(path, chosen, beside)
    if masks:
        require_own(path, names)
    return [str(path / name) for name in chosen], masks, len(names)


def _cropped(picture: str, full: Shape, crop: str | Sequence[int] | None) -> Shape:
    """The size of a picture's crop.

    Raises:
        ValueError: naming the picture, if the crop does not lie in it.
    """
    try:
        return _size(cut(full, crop, None))
    except ValueError as error:
        raise ValueError(f"{picture}: {error}") from None


def _of_split(path: Path, names: Sequence[str], split: str) -> list[str]:
    """The pictures of a split.

    Raises:
        ValueError: if there are none.
    """
    if split == ALL:
        return [*names]
    if split not in SPLITS:
        raise ValueError(f"{path}: expected a split, {', '.join(SPLITS)} or {ALL}, got {split!r}")
    are_folders = {name.partition("/")[0] for name in names} <= {*SPLITS}
    chosen = [n for n in names if (n.partition("/")[0] if are_folders else split_of(n)) == split]
    if not chosen:
        raise ValueError(f"{path}: none of the {len(names)} pictures belongs to split {split!r}")
    return chosen
