"""What other places hold of an HDF5 data set: sources of virtual ones, raw files of external ones.

What is missing there, HDF5 reads as black.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import h5py

_HERE = "."  # a source in the file of the virtual data set
_MANY = "%b"  # stands for the number of a block, whose files HDF5 looks for itself
_ORIGIN = "${ORIGIN}"  # the file's folder, in HDF5's environment variables
# HDF5 reads these once, when it is loaded.
_SOURCES_PREFIX = os.environ.get("HDF5_VDS_PREFIX", "")
_RAW_PREFIX = os.environ.get("HDF5_EXTFILE_PREFIX", "")

Boxes = Iterator[tuple[tuple[int, ...], ...]]
"""Start, count, stride and block of regular selections."""


class Source(NamedTuple):
    """A source of a virtual data set.

    Attributes:
        virtual: the virtual data set.
        place: its file.
        name: of the data set there.
        sides: how long it must be along each axis at least; () if that is not known.
        numbers: how many it must hold at least.
    """

    virtual: h5py.Dataset
    place: Path
    name: str
    sides: tuple[int, ...]
    numbers: int

    @contextmanager
    def opened(self) -> Iterator[h5py.Dataset]:
        """The data set that is the source.

        Raises:
            ValueError: if there is none, or a smaller one than is mapped.
        """
        named = self.virtual.name
        if not self.place.is_file():
            raise ValueError(f"{named}: expected its source {self.place}, got no such file")
        own = self.virtual.file
        is_here = self.place == Path(own.filename)  # which cannot be opened again and closed
        with nullcontext(own) if is_here else h5py.File(self.place) as file:
            part = file.get(self.name)
            if not isinstance(part, h5py.Dataset):
                raise ValueError(f"{named}: expected {self.name} in its source {self.place}")
            self._require_large_enough(part)
            yield part

    def _require_large_enough(self, part: h5py.Dataset) -> None:
        pairs = zip(self.sides, part.shape, strict=False)
        fits = len(self.sides) in (0, len(part.shape)) and all(a <= b for a, b in pairs)
        if fits and part.size >= self.numbers:
            return
        raise ValueError(
            f"{self.virtual.name}: expected {self.name} of at least "
            f"{list(self.sides) or self.numbers} in its source {self.place}, got {list(part.shape)}"
        )


def sources_of(stored: h5py.Dataset) -> list[Source]:
    """The sources of a data set, if it is virtual, each once; without numbered files of blocks."""
    found: dict[tuple[str, str], tuple[tuple[int, ...], int]] = {}
    for source in stored.virtual_sources() if stored.is_virtual else ():
        if _MANY in source.file_name:
            continue
        sides, numbers = _needed(source)
        key = source.file_name, source.dset_name
        known, most = found.get(key, ((), 0))
        both = itertools.zip_longest(known, sides, fillvalue=0)
        found[key] = tuple(max(pair) for pair in both), max(most, numbers)
    return [
        Source(stored, _place(stored, file), name, *needed)
        for (file, name), needed in found.items()
    ]


def _needed(source: Any) -> tuple[tuple[int, ...], int]:
    """Sides, and how many numbers, that what is mapped must have."""
    taken = source.src_space
    if taken.get_select_type() == h5py.h5s.SEL_ALL:
        return (), 0 if _is_unlimited(source.vspace) else source.vspace.get_select_npoints()
    if _is_unlimited(taken) or not taken.get_select_npoints():
        return (), 0
    return tuple(last + 1 for last in taken.get_select_bounds()[1]), 0


def require_mapped(stored: h5py.Dataset, partly: bool) -> None:
    """Refuse a virtual data set of which no source covers some part.

    Args:
        stored: the data set.
        partly: whether it is enough that something of each entry is covered.

    Raises:
        ValueError: in one line, without the file's name.
    """
    shape = stored.shape[:1] if partly else stored.shape
    covered = h5py.h5s.create_simple(shape)
    covered.select_none()
    for source in stored.virtual_sources():
        for box in _boxes(source.vspace, shape):
            covered.select_hyperslab(*box, op=h5py.h5s.SELECT_OR)
    if (found := covered.get_select_npoints()) < math.prod(shape):
        what = "entries" if partly else "numbers"
        raise ValueError(
            f"{stored.name}: its sources hold {found} of {math.prod(shape)} {what}; the others "
            f"would be read as {stored.fillvalue}"
        )


def require_raw(stored: h5py.Dataset) -> None:
    """Refuse a data set whose raw files lack some of its bytes.

    Raises:
        ValueError: in one line, without the file's name.
    """
    missing = stored.nbytes
    for place, start, length in _raw_files(stored):
        end = start + min(missing, length)
        missing -= end - start
        if not place.is_file():
            raise ValueError(f"{stored.name}: expected its raw file {place}, got no such file")
        if (present := place.stat().st_size) < end:
            raise ValueError(
                f"{stored.name}: expected {end} bytes in its raw file {place}, got {present}"
            )


def files_of(stored: h5py.Dataset) -> set[Path]:
    """The files that hold a data set: its own, where a link may lead, and those it is made of.

    Args:
        stored: what `require_written` of `hdf5_storage` has found whole.
    """
    found = {Path(stored.file.filename), *(place for place, _, _ in _raw_files(stored))}
    for source in sources_of(stored):
        with source.opened() as part:
            found |= files_of(part)
    return found


def _raw_files(stored: h5py.Dataset) -> list[tuple[Path, int, int]]:
    """Raw files of an external data set, where its bytes begin there, and how many there are."""
    prefix = _RAW_PREFIX.replace(_ORIGIN, str(_folder(stored)))
    return [
        (Path(prefix, os.fsdecode(name)), start, length)
        for name, start, length in stored.external or ()
    ]


def _place(stored: h5py.Dataset, name: str) -> Path:
    """Where HDF5 finds the file of a source; where it should be, if it is nowhere."""
    if name == _HERE:
        return Path(stored.file.filename)
    beside = _folder(stored)
    prefixes = _SOURCES_PREFIX.replace(_ORIGIN, str(beside)).split(":")
    folders = [*(Path(prefix) for prefix in prefixes if prefix), beside, Path()]
    folders.append(Path(os.path.realpath(stored.file.filename)).parent)
    places = [folder / name for folder in folders]
    if os.path.isabs(name):
        places += [folder / Path(name).name for folder in folders]
    return next((place for place in places if place.is_file()), beside / name)


def _folder(stored: h5py.Dataset) -> Path:
    return Path(stored.file.filename).parent


def _is_unlimited(space: h5py.h5s.SpaceID) -> bool:
    if space.get_select_type() != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return False
    return any(h5py.h5s.UNLIMITED in numbers for numbers in space.get_regular_hyperslab())


def _boxes(space: h5py.h5s.SpaceID, shape: tuple[int, ...]) -> Boxes:
    """Regular selections that are a selection, along the first axes, of the lengths `shape`."""
    rank, kind = len(shape), space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        yield (0,) * rank, (1,) * rank, (1,) * rank, shape
    elif kind == h5py.h5s.SEL_HYPERSLABS and space.is_regular_hyperslab():
        axes = [_limited(*axis) for axis in zip(*space.get_regular_hyperslab(), shape)]  # noqa: B905
        start, stride, count, block = zip(*axes, strict=True)
        yield start, count, stride, block
    elif kind == h5py.h5s.SEL_HYPERSLABS:
        for first, last in space.get_select_hyper_blocklist().tolist():
            block = tuple(b - a + 1 for a, b in zip(first, last, strict=True))
            yield tuple(first[:rank]), (1,) * rank, (1,) * rank, block[:rank]


def _limited(
    start: int, stride: int, count: int, block: int, length: int
) -> tuple[int, int, int, int]:
    """What an endless selection along an axis comes to."""
    if h5py.h5s.UNLIMITED not in (count, block):
        return start, stride, count, block
    if block in (stride, h5py.h5s.UNLIMITED):
        return start, 1, 1, length - start
    return start, stride, (length - start - block) // stride + 1, block
