"""Everything that images can come from: generators, and files in each layout that is read.

A reader or generator to come is one more entry of `SOURCES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emorl.bench.data.files import (
    write_clevrtex,
    write_contiguous_hdf5,
    write_npz,
    write_picture_folder,
    write_tfrecord,
)
from emorl.bench.data.scenes import DIFFERENT, Discs
from emorl.data import ObjectDataset, convert, open_dataset
from emorl.data.transforms import TransformedDataset

WORKERS = (0, 1, 2)
_COMMON = {"x": 1, "y": 1, "shape": 1, "visibility": 1}
_SPRITES = {**_COMMON, "color": 3, "orientation": 1, "scale": 1}
_CLEVR = {**_COMMON, "z": 1, "rotation": 1, "size": 1, "material": 1, "color": 1, "pixel_coords": 3}
# Configurations.
_TETROMINOES = ("tetrominoes-laptop", "tetrominoes")
_MULTI_DSPRITES = ("multi_dsprites",)
_CLEVR6 = ("clevr6",)
_CUT: dict[str, Any] = {"crop": "clevr", "size": 96}


@dataclass(frozen=True)
class Source:
    """Something that `open_dataset` opens.

    Attributes:
        title: for people.
        eaten_by: configurations that are trained on such images.
        write: makes a file of so many images; None for a generator.
        images: of the file.
        crop: as `open_dataset` takes it.
        size: likewise.
    """

    title: str
    eaten_by: tuple[str, ...]
    write: Callable[[Path, int], object] | None = None
    images: int = 0
    crop: Literal["clevr", "clevrtex"] | None = None
    size: int | None = None

    def open(self, spec: str | Path, device: str) -> ObjectDataset:
        """The data set; a generator makes its images on `device`."""
        return open_dataset(spec, crop=self.crop, size=self.size, device=device)


def _tetrominoes(images: int) -> ObjectDataset:
    return TransformedDataset(open_dataset("tetrominoes"), limit=images)


def _sprites(images: int) -> ObjectDataset:
    return Discs("multi-dsprites", (64, 64), 6, _SPRITES, images)


def _clevr(images: int) -> ObjectDataset:
    return Discs("clevr", (240, 320), 11, _CLEVR, images, noise=True)


def _write_tfrecord(scenes: Callable[[int], ObjectDataset]) -> Callable[[Path, int], object]:
    """A writer of some images, again and again: a long file in a short time."""
    return lambda path, images: write_tfrecord(
        scenes(min(images, DIFFERENT)), path, repeats=max(1, images // DIFFERENT)
    )


def _write_hdf5(scenes: Callable[[int], ObjectDataset]) -> Callable[[Path, int], object]:
    """A writer of what `emorl data convert` makes: compressed, an image a chunk."""
    return lambda path, images: convert(scenes(images), path)


# By name; a generator's is `open_dataset`'s. HDF5 files are larger than the 8 MiB of chunks that
# HDF5 keeps.
SOURCES = {
    "tetrominoes": Source("Tetrominoes, generated", _TETROMINOES),
    "tetrominoes-real10": Source("Tetrominoes, ten published", _TETROMINOES),
    "multi_dsprites": Source("Multi-dSprites, generated", _MULTI_DSPRITES),
    "multi_dsprites-binarized": Source("Multi-dSprites, binarized", _MULTI_DSPRITES),
    "multi_dsprites-colored_on_colored": Source("Multi-dSprites on colours", _MULTI_DSPRITES),
    "clevr6": Source("CLEVR-like, to 6 objects", _CLEVR6),
    "clevr10": Source("CLEVR-like, to 10 objects", _CLEVR6),
    "clevrtex-like": Source("ClevrTex-like", _CLEVR6),
    "tetrominoes-tfrecord": Source(
        "Tetrominoes, TFRecord in memory", _TETROMINOES, _write_tfrecord(_tetrominoes), 4096
    ),
    "tetrominoes-hdf5": Source("Tetrominoes, HDF5", _TETROMINOES, _write_hdf5(_tetrominoes), 4096),
    "multi-dsprites-tfrecord": Source(
        "Multi-dSprites, TFRecord in memory", _MULTI_DSPRITES, _write_tfrecord(_sprites), 1024
    ),
    "multi-dsprites-hdf5": Source(
        "Multi-dSprites, HDF5", _MULTI_DSPRITES, _write_hdf5(_sprites), 1024
    ),
    # 96 records inflate to 310 MB: too many for memory, as are the published file's.
    "clevr-tfrecord": Source(
        "CLEVR, TFRecord by an index",
        _CLEVR6,
        _write_tfrecord(_clevr),
        96,
        **_CUT,
    ),
    "clevr-hdf5": Source("CLEVR, HDF5, an image a chunk", _CLEVR6, _write_hdf5(_clevr), 64, **_CUT),
    "clevr-hdf5-contiguous": Source(
        "CLEVR, HDF5, contiguous",
        _CLEVR6,
        lambda path, images: write_contiguous_hdf5(_clevr(images), path),
        64,
        **_CUT,
    ),
    "clevr-pictures": Source(
        "CLEVR, JPEG files and label maps",
        _CLEVR6,
        lambda path, images: write_picture_folder(_clevr(images), path),
        96,
        **_CUT,
    ),
    "clevr-npz": Source(
        "CLEVR, archive of arrays",
        _CLEVR6,
        lambda path, images: write_npz(_clevr(images), path),
        64,
        **_CUT,
    ),
    "clevrtex": Source(
        "ClevrTex, PNG files and label maps",
        _CLEVR6,
        lambda path, images: write_clevrtex(_clevr(images), path),
        64,
        crop="clevrtex",
        size=96,
    ),
}
