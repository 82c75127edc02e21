"""Damaged files of data in every container that is read: right numbers, or one line.

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
from layout_testing import HDF5
from test_tfrecord import framed, serialised, tiny

VARIANTS = 2_000
"""Damaged variants of each container in `make torture`."""
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


def damaged(seed: int, first: int, cases: int) -> Iterator[tuple[int, Counter[str], str]]:
    """As `mutated_files`, of containers alone, each in turn."""
    return mutated_files(seed, first, cases, containers, MEMORY)
