"""Storing any data set as an HDF5 file in EfficientMORL's layout.

Parts of the file are written first, each by one process and with its name only when it is whole.
What stops in between goes on with the parts that are missing. Joining them copies the compressed
chunks as they are; then all images are read back and compared.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from emorl.data.base import UNBOUNDED, Batch, ObjectDataset
from emorl.data.open import require_split_name
from emorl.data.stored import checksums, differing, join, write_part
from emorl.memory import size
from emorl.paths import local, real
from emorl.runs.files import clean, remove_empty, replacing, write_atomically
from emorl.terminal import progress

PART = 1024
"""Images of a part."""
_PLAN = "plan.json"
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def convert(
    source: ObjectDataset,
    path: str | Path,
    images: int | None = None,
    *,
    split: str = "train",
    workers: int = 0,
) -> Path:
    """Write the first images of a data set into a new HDF5 file, with a progress bar on terminals.

    The group `split` holds imgs uint8 [N, H, W, 3] with the attribute "value_range", masks uint8 0
    or 255 [N, E, H, W, 1] (a label map int32 [N, 1, H, W, 1] where the source has more than 255
    objects) and factors float32 [N, E, F] with the attribute "columns", one name for each column.
    `HDF5Dataset` gives back exactly what `source` gave, which is verified. The file gets its name
    when it is complete. Until then a folder `path`.parts holds the parts that are done, from which
    another call with the same arguments goes on.

    Args:
        source: what to store.
        path: the new file.
        images: how many images; all by default, which a generator needs a limit for.
        split: name of the group.
        workers: processes that read and write parts; 0 for this one.

    Returns:
        The path.

    Raises:
        ValueError: if the file exists, there are fewer images, the disk cannot hold them, the
            split is no name, the parts there belong to another conversion, or what is read back
            differs.
        OSError: if a process was killed or the disk is full.
    """
    path = local(path)
    require_split_name(split)
    if path.exists():
        raise ValueError(f"{path}: already exists; remove it, or store under another name")
    images = _count(source, images)
    folder = path.with_name(path.name + ".parts")
    parts = [range(start, min(start + PART, images)) for start in range(0, images, PART)]
    first = source.__getitems__(range(min(images, 2))).to("cpu")
    _require_room(first, images, path, folder)
    _begin(folder, _plan(source, first, images, split))
    try:
        with _progress(images, "stored") as done:
            _write_parts(source, folder, parts, workers, done)
    except BaseException:
        if not any(_place(folder, part).exists() for part in parts):
            _remove(folder, parts)
        raise
    with replacing(path) as unfinished:
        join([_place(folder, part) for part in parts], unfinished, split, source.name)
        with _progress(images, "verified") as done:
            _verify(path, unfinished, folder, parts, split, done)
    _remove(folder, parts)
    return path


def _count(source: ObjectDataset, images: int | None) -> int:
    """How many images to store.

    Raises:
        ValueError: if there are not so many, or no end.
    """
    if images is None:
        images = len(source)
        if images >= UNBOUNDED:
            raise ValueError(f"convert: expected a number of images: {source.name} has no end")
    if images < 1:
        raise ValueError(f"convert: expected a number of images from 1, got {images}")
    if (available := source.count(images)) < images:
        raise ValueError(
            f"convert: expected up to {available} images of {source.name}, got {images}"
        )
    return images


def _require_room(first: Batch, images: int, path: Path, folder: Path) -> None:
    """Refuse more images than the disk can hold, as the first tell, before anything is written.

    Only the images are counted, and once; masks, factors and the parts, which are there beside the
    whole file, make up for first images that are larger than others.
    """
    least = min(len(zlib.compress(image.numpy().tobytes(), 1)) for image in first.image)
    there = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free + sum(part.stat().st_size for part in folder.glob("*"))
    if images > (most := free // least):
        raise ValueError(
            f"{path}: expected up to {most} images, for which the disk has room ({size(free)} "
            f"free), got {images}"
        )


def _plan(source: ObjectDataset, first: Batch, images: int, split: str) -> dict[str, Any]:
    """What a conversion is: parts of another one or of changed files are not its own."""
    files = hashlib.sha256()
    for path in source.files():
        status = path.stat()
        files.update(f"{real(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    told = {
        "reading": source.reading(),
        "files": files.hexdigest(),
        "first": checksums(first),
    }
    return {**told, "images": images, "split": split, "images_a_part": PART}


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Make the folder of the parts, or see that it is of the same conversion."""
    text = json.dumps(plan, default=str).encode()  # numbers of NumPy, too
    place = folder / _PLAN
    if place.exists():
        if place.read_bytes() != text:
            raise ValueError(
                f"{folder}: holds parts of another conversion, or its source has changed; remove it"
            )
        return
    clean(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: expected no such folder, where the parts go; move it away")
    write_atomically(place, text)


def _place(folder: Path, part: range) -> Path:
    return folder / f"{part.start:09}.h5"


def _remove(folder: Path, parts: list[range]) -> None:
    """Remove a conversion's files, and their folder unless somebody else's are there, too."""
    for part in parts:
        _place(folder, part).unlink(missing_ok=True)
    (folder / _PLAN).unlink(missing_ok=True)
    clean(folder)
    remove_empty([folder])


def _write_parts(
    source: ObjectDataset,
    folder: Path,
    parts: list[range],
    workers: int,
    done: Callable[[int], object],
) -> None:
    """Write the parts that are missing."""
    missing = []
    for part in parts:
        if _place(folder, part).exists():
            done(len(part))
        else:
            missing.append(part)
    if workers == 0 or len(missing) < 2:
        for part in missing:
            _write(source, folder, part)
            done(len(part))
        return
    context = multiprocessing.get_context("fork")  # the source need not be sent
    with ProcessPoolExecutor(workers, context, _adopt, (source, folder)) as pool:
        waiting = {pool.submit(_write_own, part): part for part in missing}
        try:
            for future in as_completed(waiting):
                future.result()
                done(len(waiting[future]))
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise OSError(
                    f"{folder}: a process was killed; the same command goes on, with fewer "
                    "--workers if memory ran out"
                ) from None
            raise


_own: dict[str, Any] = {}
"""What a worker reads from and writes to."""


def _adopt(source: ObjectDataset, folder: Path) -> None:
    """In a worker: keep its source; one thread, since others do not survive a fork.

    It dies with the process that started it, which may be killed.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a traceback
    torch.set_num_threads(1)
    _own.update(source=source, folder=folder)


def _write_own(part: range) -> None:
    _write(_own["source"], _own["folder"], part)


def _write(source: ObjectDataset, folder: Path, part: range) -> None:
    with replacing(_place(folder, part)) as unfinished:
        write_part(source, part, unfinished)


def _verify(
    path: Path,
    unfinished: Path,
    folder: Path,
    parts: list[range],
    split: str,
    done: Callable[[int], object],
) -> None:
    """Read all images back.

    Raises:
        ValueError: naming the first that differ from the source's.
    """
    from emorl.data.readers.hdf5 import HDF5Dataset

    stored = HDF5Dataset(unfinished, split)
    for part in parts:
        for rows, wrong in differing(stored, _place(folder, part), part):
            if wrong:
                raise ValueError(
                    f"{path}: image {wrong[0]} was read back otherwise than it was written; look "
                    f"for a full or failing disk, remove {folder}, and convert again"
                )
            done(len(rows))


@contextmanager
def _progress(images: int, word: str) -> Iterator[Callable[[int], object]]:
    """A bar on terminals; what it gives takes the number of images that are done."""
    with progress(total=images, unit="image", desc=word) as bar:
        yield bar.update
