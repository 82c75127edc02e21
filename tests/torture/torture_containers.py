"""Damaged files of data in every format that is read: right numbers, or one line.

The process may take little more memory than whole files need, so what a damaged file declares
must be held against its size before memory is taken for it.
"""

from __future__ import annotations

import functools
import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from torture_files import Format, mutated_files, read_images

# isort: split
from layout_testing import HDF5, scenes
from own_files_writing import OWN
from PIL import Image
from test_tfrecord import framed, serialised, tiny

VARIANTS = 2_000
"""Damaged variants of each format in `make torture`."""
MEMORY = 256 << 20
"""Bytes that reading may take beyond those of the process; the whole files inflate to 60 kB."""


def make(write: Callable[[Path], object], name: str, folder: Path) -> None:
    write(folder / name)


def make_records(compress: Callable[[bytes], bytes], name: str, folder: Path) -> None:
    content = b"".join(framed(serialised(tiny(value))) for value in range(3))
    (folder / name).write_bytes(compress(content))


def containers() -> list[Format]:
    """A file of each."""
    made: list[Format] = []
    for number, write in enumerate(HDF5.values()):
        name = f"layout-{number}.h5"
        made.append(
            Format(name, functools.partial(make, write, name), read_images(name), frugal=True)
        )
    for name, compress in {"plain": bytes, "gzip": gzip.compress, "zlib": zlib.compress}.items():
        records = functools.partial(make_records, compress, name)
        made.append(Format(name, records, read_images(name), checked=True, frugal=True))
    return made


def make_pictures(ending: str, folder: Path) -> None:
    """Two pictures for training, the first with its label map, and a label map of the second."""
    made = scenes()
    assert made.labels is not None
    place = folder / ending / "train"
    place.mkdir(parents=True)
    for number in range(2):
        picture = place / f"{number}.{ending}"
        Image.fromarray(made.images[number]).save(picture, lossless=True)
        Image.fromarray(made.labels[number]).save(place / f"{number}_mask.png")


def own_images() -> list[Format]:
    """A picture of each kind, a label map, an array and an archive of arrays."""
    made: list[Format] = []
    for ending in ("png", "jpg", "webp", "bmp"):
        pictures, read = functools.partial(make_pictures, ending), read_images(ending)
        names = [f"0.{ending}", *["0_mask.png"] * (ending == "png")]
        made += [
            Format(f"{ending}/train/{name}", pictures, read, name.endswith("png"), frugal=True)
            for name in names
        ]
    for layout, name in {"NumPy array (.npy)": "a.npy", "NumPy archive (.npz)": "a.npz"}.items():
        write, checked = functools.partial(make, OWN[layout], name), name.endswith("z")
        made.append(Format(name, write, read_images(name), checked=checked, frugal=True))
    return made


def damaged(seed: int, first: int, cases: int) -> Iterator[tuple[int, Counter[str], str]]:
    """As `mutated_files`, of containers alone, each in turn."""
    return mutated_files(seed, first, cases, containers, MEMORY)


def damaged_own_images(
    seed: int, first: int, cases: int
) -> Iterator[tuple[int, Counter[str], str]]:
    """The same of own images."""
    return mutated_files(seed, first, cases, own_images, MEMORY)
