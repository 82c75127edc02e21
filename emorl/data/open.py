"""Opening a data set by name or path."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from emorl.data.base import ObjectDataset
from emorl.data.filtered import FilteredDataset
from emorl.data.generators.clevr import Clevr, ClevrTexLike
from emorl.data.generators.multi_dsprites import MultiDSprites
from emorl.data.generators.real10 import TetrominoesReal10
from emorl.data.generators.tetrominoes import Tetrominoes
from emorl.data.transforms import CROPS, TransformedDataset, shape_of
from emorl.data.values import value_range as as_range
from emorl.fields import fit, shown
from emorl.paths import local
from emorl.suggestions import near

if TYPE_CHECKING:
    from emorl.data.readers.base import FileDataset

GENERATORS: Mapping[str, Callable[..., ObjectDataset]] = {
    "tetrominoes": Tetrominoes,
    "tetrominoes-real10": TetrominoesReal10,
    "multi_dsprites": MultiDSprites,
    "multi_dsprites-binarized": partial(MultiDSprites, "binarized"),
    "multi_dsprites-colored_on_colored": partial(MultiDSprites, "colored_on_colored"),
    "clevr6": partial(Clevr, 6),
    "clevr10": partial(Clevr, 10),
    "clevrtex-like": ClevrTexLike,
}
"""Names that `open_dataset` takes instead of a path, and what makes their images."""

# In any size, and cropped already: what published code cuts out of CLEVR's and ClevrTex's frames.
_RENDERED = ("clevr6", "clevr10", "clevrtex-like")
FORMATS = (
    "HDF5 in a published layout, TFRecord of DeepMind's multi-object data sets, arrays of NumPy, "
    "folder of pictures"
)
WHERE = "docs/datasets.md tells where the published files are"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_NUMPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGIC = b"PK\x03\x04"
_HEADER = 256  # bytes of a .npy file in which its data type is written


def open_dataset(
    spec: str | Path,
    *,
    split: str = "train",
    seed: int = 0,
    limit: int | None = None,
    crop: str | Sequence[int] | None = None,
    size: int | Sequence[int] | None = None,
    value_range: Sequence[float] | None = None,
    max_objects: int | None = None,
    device: torch.device | str = "cpu",
) -> ObjectDataset:
    """Open a data set by a generator's name or a file's path.

    Args:
        spec: one of `GENERATORS` ("tetrominoes-real10": ten published records; the others are
            endless), the path of an HDF5 or TFRecord file or of NumPy's arrays (.npy, .npz), which
            is recognised by its content, or a folder of pictures (`emorl.data.readers.images`) or
            of ClevrTex; "~" is a home folder, and a pattern with "*", "?" or "[...]" means all
            shards of a TFRecord file.
        split: "train", "val" or "test": a generator's split shares no scene's random state with
            the others; of an HDF5 file it is the group. Files without groups are divided as
            `emorl.data.splits` says, if they have as many images; else they, as the ten records,
            are one split, whatever this says.
        seed: of a generator.
        limit: keep only the first `limit` images (of those with few objects).
        crop: the name of a published crop, "centre", or four numbers: see
            `emorl.data.transforms.cut`. CLEVR-like images are made as published crops leave them.
        size: height and width to resize to, after cropping; one number for squares. Pictures of a
            folder keep their aspect and lose margins, other images are stretched.
        value_range: what the numbers of a file's images mean, [0, 1] or [0, 255]; None lets the
            file decide, as `emorl.data.values` says.
        max_objects: of a file, keep the images with at most so many objects, by their visibility:
            6 makes CLEVR6 of CLEVR.
        device: where a generator makes its images; files are read into main memory.

    Raises:
        ValueError: if there is no such data set, or the file cannot be used; one line says why.
    """
    if not isinstance(spec, str | os.PathLike):
        raise ValueError(f"spec: expected a generator's name or a path, got {shown(spec)}")
    require_split_name(split)
    seed, limit = fit("seed", seed, int), fit("limit", limit, int | None)
    max_objects = fit("max_objects", max_objects, int | None)
    if spec in GENERATORS and value_range is not None:
        raise ValueError(f"value_range: expected none for the generator {spec}, got {value_range}")
    if spec in GENERATORS and max_objects is not None:
        raise ValueError(f"max_objects: expected none for the generator {spec}, got {max_objects}")
    dataset: ObjectDataset
    if spec in _RENDERED:
        side = 96 if size is None else min(shape_of(size))
        dataset = GENERATORS[str(spec)](size=side, split=split, seed=seed, device=device)
        crop = None if isinstance(crop, str) and crop in CROPS else crop
    elif spec in GENERATORS:
        dataset = GENERATORS[str(spec)](split=split, seed=seed, device=device)
    elif local(spec).is_dir():
        if max_objects is not None:
            raise ValueError(f"max_objects: expected none for a folder, got {max_objects}")
        dataset = open_folder(local(spec), split, crop, size, value_range)
        crop = size = None
    else:
        dataset = open_file(spec, split=split, value_range=value_range)
        if max_objects is not None:
            dataset = FilteredDataset(dataset, max_objects)
    if limit is None and crop is None and size is None:
        return dataset
    return TransformedDataset(dataset, limit=limit, crop=crop, size=size)


def open_file(
    path: str | Path, *, split: str = "train", value_range: Sequence[float] | None = None
) -> FileDataset:
    """The reader of a file, chosen by its content.

    Raises:
        ValueError: if there is no such file, it is in none of the known formats, or its images are
            not in their range of values.
    """
    spec = path
    path, *others = data_files(spec)
    asked = None if value_range is None else as_range(value_range, "value_range")
    if others and (is_hdf5(path) or is_arrays(path)):
        kind = "HDF5 files" if is_hdf5(path) else "arrays of NumPy"
        raise ValueError(
            f"{spec}: expected a pattern that matches the shards of a TFRecord file, got "
            f"{1 + len(others)} {kind}; name one of them, {path.name} for example"
        )
    if is_hdf5(path):
        from emorl.data.readers.hdf5 import HDF5Dataset

        return HDF5Dataset(path, split, asked)
    if is_arrays(path):
        from emorl.data.readers.arrays import ArrayDataset

        return ArrayDataset(path, asked)
    from emorl.data.readers.pictures import read_header
    from emorl.data.readers.tfrecord import TFRecordDataset
    from emorl.data.readers.tfrecord_container import is_compressed

    with path.open("rb") as file:
        start = file.read(_HEADER)
    if is_compressed(start[:12]) is None:
        found = f"a file that starts with {start[:4].hex(' ')}" if start else "an empty file"
        with suppress(ValueError):
            read_header(path)
            found = "a picture, of which the folder is to be named"
        raise ValueError(f"{path}: expected {FORMATS}; got {found}")
    return TFRecordDataset([path, *others], asked, split)


def open_folder(
    path: Path,
    split: str,
    crop: str | Sequence[int] | None,
    size: int | Sequence[int] | None,
    value_range: Sequence[float] | None,
    *,
    lenient: bool = False,
) -> FileDataset:
    """The reader of a folder of pictures, ClevrTex's or any, which frames each by itself.

    A lenient one can be opened where some of its first pictures cannot be used.

    Raises:
        ValueError: as `emorl.data.readers.images.ImageFolder` does.
    """
    from emorl.data.readers.clevrtex import ClevrTex, is_clevrtex
    from emorl.data.readers.images import ImageFolder

    asked = None if value_range is None else as_range(value_range, "value_range")
    reader = ClevrTex if is_clevrtex(path) else ImageFolder
    return reader(path, split, crop, size, asked, lenient=lenient)


def passed_over(path: Path) -> str:
    """The files of a folder of pictures that are not read, by ending; "" if there are none."""
    from emorl.data.readers.clevrtex import is_clevrtex
    from emorl.data.readers.images import other_files

    return other_files(path) if path.is_dir() and not is_clevrtex(path) else ""


def data_files(spec: str | Path) -> list[Path]:
    """The file or folder of a data set, or the shards that a pattern matches, by name.

    Raises:
        ValueError: if there is none.
    """
    path = local(spec)
    if path.is_file() or path.is_dir():
        return [path]
    if "\0" not in str(path) and glob.has_magic(str(path)):
        if found := [Path(name) for name in sorted(glob.glob(str(path))) if os.path.isfile(name)]:
            return found
        raise ValueError(f"{path}: no file matches; {WHERE}")
    raise ValueError(
        f"{path}: neither a file nor a generator{near(str(path), GENERATORS)}; files: {FORMATS}; "
        f"{WHERE}"
    )


def require_split_name(split: str) -> None:
    """Refuse what is no name of a part of the data: a path, above all.

    Raises:
        ValueError: naming what is allowed.
    """
    if not isinstance(split, str) or not re.fullmatch(r"\w[\w. -]*", split):
        raise ValueError(f"split: expected a name of letters, digits, '-', '_', got {shown(split)}")


def is_arrays(path: Path) -> bool:
    """Whether the file is NumPy's: an array (.npy) or an archive of arrays (.npz).

    Raises:
        ValueError: if the array is of Python objects.
    """
    with path.open("rb") as file:
        start = file.read(_HEADER)
    if start.startswith(_NUMPY_MAGIC) and b"'|O'" in start:
        raise ValueError(
            f"{path}: pickled Python objects, which can run any code when they are read, so they "
            "are not; object-centric-library's metadata are not needed: open its .hdf5 file"
        )
    is_archive = start.startswith(_ZIP_MAGIC) and b".npy" in start
    return is_archive or start.startswith(_NUMPY_MAGIC)


def is_hdf5(path: Path) -> bool:
    """Whether the file starts like HDF5, at 0 or behind a user block of up to 2048 bytes."""
    with path.open("rb") as file:
        start = file.read(2048 + len(_HDF5_MAGIC))
    return any(start[offset:].startswith(_HDF5_MAGIC) for offset in (0, 512, 1024, 2048))
