"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = ".unfinished-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside `path` to write a file or a folder to, which then becomes `path`.

    What was written is brought to the disk before it is renamed. So readers, and whoever comes
    after a process that was killed at any moment, find what was there before or all of the new,
    never a part. Folders on the way are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _beside(path)
    try:
        yield unfinished
        for part in (*unfinished.rglob("*"), unfinished):
            _to_disk(part)
        os.replace(unfinished, path)
    except BaseException:
        _delete(unfinished)
        raise
    _to_disk(path.parent)


def write_atomically(path: Path, content: bytes) -> Path:
    """Put a small file in its place, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def remove(folder: Path) -> None:
    """Rename, then delete: a half deleted folder must not pass for a whole one."""
    doomed = _beside(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def clean(folder: Path) -> None:
    """Delete what killed processes left half written or half removed, at any depth."""
    for leftover in [*folder.rglob(f"{_UNFINISHED}*")]:
        _delete(leftover)


def _beside(path: Path) -> Path:
    """A hidden name that no other process takes."""
    return path.with_name(f"{_UNFINISHED}{path.name}.{os.getpid()}")


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
