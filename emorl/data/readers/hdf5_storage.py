"""How an HDF5 data set lies in its file: whether it is there at all, and how fast images come."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py

from emorl.memory import require_memory, size

# Most bytes that a filter makes out of one: deflate has matches of 258 bytes in 2 bits, LZF of 264
# in 3 bytes. The others change no size. A file with other filters is not judged.
_INFLATES = {"deflate": 1032, "lzf": 88, "shuffle": 1, "fletcher32": 1}
# Of a random read, roughly: seconds per chunk, per inflated byte, per byte that is only copied.
_PER_CHUNK, _PER_INFLATED, _PER_COPIED = 3e-5, 5e-9, 1e-9
_PER_IMAGE = 1e-4
_SLOW = 10
_SMALL_CHUNK = 64 << 20  # bytes that a chunk may have in a file that is smaller


def require_stored(stored: h5py.Dataset) -> None:
    """Refuse a data set that declares more than its file can hold, or this machine.

    Raises:
        ValueError: in one line, without the file's name.
    """
    declared = math.prod(stored.shape) * stored.dtype.itemsize
    filters = _filters(stored)
    present = stored.id.get_storage_size()
    is_elsewhere = stored.is_virtual or stored.external
    if not is_elsewhere and all(name in _INFLATES for name in filters):
        most = present * math.prod(_INFLATES[name] for name in filters)
        if declared > most:
            raise ValueError(
                f"{stored.name} declares {list(stored.shape)} of {stored.dtype}, {size(declared)}, "
                f"but only {size(present)} are stored"
            )
    chunk = math.prod(stored.chunks or (0,)) * stored.dtype.itemsize
    if chunk > max(declared, _SMALL_CHUNK):  # a chunk is inflated as a whole
        raise ValueError(
            f"{stored.name} has chunks of {size(chunk)}, but declares only {size(declared)}"
        )
    row = math.prod(stored.shape[1:]) * stored.dtype.itemsize
    require_memory(row, f"an entry of {stored.name}, {list(stored.shape[1:])} of {stored.dtype},")


def require_written(stored: h5py.Dataset, *, partly: bool = False) -> None:
    """Refuse entries of which some were never written: HDF5 would read images as black.

    Args:
        stored: images, or something else of which each image has an entry.
        partly: whether an entry may lack some chunks, though not all, as masks do whose writer
            leaves out entities that are not there.

    Raises:
        ValueError: in one line, without the file's name.
    """
    for part in _parts(stored):
        require_written(part, partly=partly)
    if not stored.chunks or not stored.size or stored.is_virtual:
        return
    sides = zip(stored.shape, stored.chunks, strict=True)
    along, *others = (math.ceil(side / length) for side, length in sides)
    declared = along * math.prod(others)
    if (present := stored.id.get_num_chunks()) == declared:
        return
    if partly:
        entries: set[int] = set()
        stored.id.chunk_iter(lambda chunk: entries.add(chunk.chunk_offset[0]))
        if len(entries) == along:
            return
    raise ValueError(
        f"{stored.name}: {present} of {declared} chunks are stored; the others would be read "
        f"as {stored.fillvalue}"
    )


def _parts(stored: h5py.Dataset) -> Iterator[h5py.Dataset]:
    """What other files hold of a virtual data set.

    Raises:
        ValueError: if one of them lacks its part.
    """
    for place, name in _sources(stored):
        if not place.is_file():
            raise ValueError(f"{stored.name}: expected its source {place}, got no such file")
        with h5py.File(place) as file:
            part = file.get(name)
            if not isinstance(part, h5py.Dataset):
                raise ValueError(f"{stored.name}: expected {name} in its source {place}")
            yield part


def files_of(stored: h5py.Dataset) -> set[Path]:
    """The files that hold a data set: its own, where a link may lead, and those it is made of."""
    raw = [Path(os.fsdecode(name)) for name, _, _ in stored.external or ()]
    virtual = [place for place, _ in _sources(stored)]
    return {Path(stored.file.filename), *(place for place in (*raw, *virtual) if place.is_file())}


def _sources(stored: h5py.Dataset) -> list[tuple[Path, str]]:
    """Other files of a virtual data set with the name that each part has there.

    Left out are those that HDF5 looks for elsewhere than beside the file.
    """
    if not stored.is_virtual or "HDF5_VDS_PREFIX" in os.environ:
        return []
    named = [(str(source.file_name), source.dset_name) for source in stored.virtual_sources()]
    beside = Path(stored.file.filename).parent
    return [(beside / name, part) for name, part in named if name != "." and "%b" not in name]


def slow_reads(read: Sequence[h5py.Dataset]) -> str | None:
    """In words, why reading single entries of these data sets takes very long; None if it doesn't.

    Compared are the chunks as they are with one entry a chunk.
    """
    costs = [_cost(stored) for stored in read]
    best = _PER_IMAGE + sum(ideal for _, ideal, _ in costs)
    times = (_PER_IMAGE + sum(cost for cost, _, _ in costs)) / best
    if times < _SLOW:
        return None
    _, _, worst = max(costs, key=lambda cost: cost[0])
    return f"reading in random order takes about {times:.0f} times as long as it need: {worst}"


def in_words(stored: h5py.Dataset, name: str) -> str:
    """Shape, type, chunks and compression of a data set, for a reader."""
    chunks = f"chunks {list(stored.chunks)}" if stored.chunks else "not in chunks"
    filters = ", ".join(_filters(stored)) or "not compressed"
    return f"{name} {stored.dtype} {list(stored.shape)}, {chunks}, {filters}"


def _cost(stored: h5py.Dataset) -> tuple[float, float, str]:
    """Seconds to read one entry as it is stored and from a chunk of its own; why, in words."""
    entry = math.prod(stored.shape[1:]) * stored.dtype.itemsize
    filtered = bool(_filters(stored))
    per_byte = _PER_INFLATED if filtered else _PER_COPIED
    ideal = _PER_CHUNK + entry * per_byte
    cache = stored.id.get_access_plist().get_chunk_cache()[1]
    if stored.chunks is None or stored.nbytes <= cache:
        return ideal, ideal, ""
    chunk = math.prod(stored.chunks) * stored.dtype.itemsize
    touched = math.prod(
        math.ceil(length / part)
        for length, part in zip(stored.shape[1:], stored.chunks[1:], strict=True)
    )
    # Without a filter only what is asked for is read of a chunk that the cache does not hold.
    read = touched * chunk if filtered or chunk <= cache else entry
    words = (
        f"an image's part of {stored.name}, {size(entry)}, lies in {touched} chunks of "
        f"{size(chunk)} each"
    )
    return touched * _PER_CHUNK + read * per_byte, ideal, words


def _filters(stored: h5py.Dataset) -> list[str]:
    """Names of a data set's filters."""
    properties = stored.id.get_create_plist()
    names = [properties.get_filter(i)[3].decode() for i in range(properties.get_nfilters())]
    return [name.partition(" ")[0] or "unknown" for name in names]
