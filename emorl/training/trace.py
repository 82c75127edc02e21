"""By what a run knows the files of its data again, wherever they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from emorl.data import ObjectDataset
from emorl.runs import RunFolder
from emorl.runs.files import read_json, write_atomically
from emorl.training.config import DataConfig
from emorl.training.images import held_out_images, training_images

_LOOKED_INTO = 32  # files, spread over all
_BLOCKS, _BLOCK = 32, 1 << 14  # that are read of each, and bytes of a block

Trace = Mapping[str, str]
"""The setting that names a data set -> what its files are known by."""


def trace_of(data_sets: Mapping[str, ObjectDataset | None]) -> Trace:
    """By what the files of data sets are known; generators have none.

    Args:
        data_sets: by the setting that names each.
    """
    files = {name: images.files() for name, images in data_sets.items() if images is not None}
    return {name: _digest(paths) for name, paths in files.items() if paths}


def changed(run: RunFolder, trace: Trace) -> list[str]:
    """A line for each data set whose files are not those that the run was trained on last."""
    try:
        before = read_json(run.data)
        kept = {name: before[name] for name in trace if name in before}
    except (OSError, ValueError, TypeError):  # none is kept by older versions
        return []
    return [
        f"{name}: not the files that the run was trained on so far; names, sizes or contents differ"
        for name in kept
        if kept[name] != trace[name]
    ]


def changed_since(run: RunFolder, data: DataConfig) -> list[str]:
    """The lines of `changed` for a run's data as they are now; none for data that are gone."""
    found: dict[str, ObjectDataset | None] = {}
    with suppress(ValueError):
        found["data.train"] = training_images(data)
    if data.held_out is not None:
        with suppress(ValueError):
            found["data.held_out"] = held_out_images(data)
    return changed(run, trace_of(found))


def keep(run: RunFolder, trace: Trace) -> None:
    """Remember what the run is trained on."""
    write_atomically(run.data, json.dumps(trace, indent=1).encode())


def _digest(files: Sequence[Path]) -> str:
    """Of all names and sizes, and of bytes of some files; not of folders, which may move."""
    sizes = [path.stat().st_size for path in files]
    digest = hashlib.sha256()
    for path, size in zip(files, sizes, strict=True):
        digest.update(f"{path.name} {size}\n".encode(errors="surrogateescape"))
    for place in _spread(len(files), _LOOKED_INTO):
        with files[place].open("rb") as file:
            for start in _spread(max(1, sizes[place] - _BLOCK + 1), _BLOCKS):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _spread(length: int, most: int) -> list[int]:
    """Up to `most` numbers from 0 to `length` - 1, evenly spread, with the first and the last."""
    count = min(length, most)
    return [0] if count == 1 else [i * (length - 1) // (count - 1) for i in range(count)]
