"""Atomic writing and removal of files and folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = ".unfinished-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename what was written there to `path`.

    It is synced to the disk before it is renamed. So readers find the old file or folder or the
    whole new one, never a part, also after a process that was killed. Parent folders are made.
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
    """Write a small file atomically."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def remove(folder: Path) -> None:
    """Rename a folder, then delete it: half deleted it must not pass for a whole one."""
    doomed = _beside(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def clean(folder: Path) -> None:
    """Delete what killed processes left half written or half removed, in all subfolders."""
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
