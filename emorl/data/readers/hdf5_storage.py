"""How an HDF5 data set lies in its file: whether it is there at all, and how fast images come."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import h5py

from emorl.data.readers.hdf5_sources import require_mapped, require_raw, sources_of
from emorl.memory import require_memory, size

# Most bytes that a filter makes out of one: deflate has matches of 258 bytes in 2 bits, LZF of 264
# in 3 bytes. The others change no size. A file with other filters is not judged.
_INFLATES = {"deflate": 1032, "lzf": 88, "shuffle": 1, "fletcher32": 1}
# Of a random read, roughly: seconds per chunk, per inflated byte, per byte that is only copied.
_PER_CHUNK, _PER_INFLATED, _PER_COPIED = 3e-5, 5e-9, 1e-9
_PER_IMAGE = 1e-4
_SLOW = 10
_SMALL_CHUNK = 64 << 20  # bytes that a chunk may have in a file that is smaller


def require_stored(stored: h5py.Dataset, *, partly: bool = False) -> None:
    """Refuse a data set that declares more than its file can hold, or this machine.

    Args:
        stored: the data set.
        partly: whether chunks may be left out, which are then for `require_written` to judge.

    Raises:
        ValueError: in one line, without the file's name.
    """
    declared = math.prod(stored.shape) * stored.dtype.itemsize
    filters = _filters(stored)
    present = stored.id.get_storage_size()
    is_judged = not stored.is_virtual and not stored.external and not (partly and stored.chunks)
    if is_judged and all(name in _INFLATES for name in filters):
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


def require_written(
    stored: h5py.Dataset, *, partly: bool = False, within: Sequence[tuple[str, str]] = ()
) -> None:
    """Refuse entries of which some were never written: HDF5 would read images as black.

    Args:
        stored: images, or something else of which each image has an entry.
        partly: whether an entry may lack some chunks, though not all, as masks do whose writer
            leaves out entities that are not there.
        within: files and names of the virtual data sets that this is a source of.

    Raises:
        ValueError: in one line, without the file's name.
    """
    if not stored.size:
        return
    if stored.is_virtual:
        own = os.path.realpath(stored.file.filename), stored.name
        if own in within:
            raise ValueError(f"{stored.name}: expected sources other than itself")
        require_mapped(stored, partly)
        for source in sources_of(stored):
            with source.opened() as part:
                require_written(part, partly=partly, within=(*within, own))
    elif stored.external:
        require_raw(stored)
    elif stored.chunks:
        _require_chunks(stored, partly)
    elif (present := stored.id.get_storage_size()) < stored.nbytes:
        raise ValueError(
            f"{stored.name}: {size(present)} of {size(stored.nbytes)} are stored; the others would "
            f"be read as {stored.fillvalue}"
        )


def _require_chunks(stored: h5py.Dataset, partly: bool) -> None:
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
