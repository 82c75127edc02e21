"""Atomic writing and removal of files and folders."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = re.compile(r"\.unfinished-.*\.(\d+)(\.[0-9a-f]+)?")
_DAMAGED = ".damaged"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename what was written there to `path`.

    It is synced to the disk before it is renamed. So readers find the old file or folder or the
    whole new one, never a part, also after a process that was killed. Parent folders are made.

    Raises:
        OSError: which names `path`, if the disk is full, say; what was there before stays.
    """
    with _written_beside(path) as unfinished:
        yield unfinished
        _all_to_disk(unfinished)
        os.replace(unfinished, path)
    _to_disk(path.parent)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files then replace those of the same names in `folder`.

    A new or empty folder is replaced atomically. In another one, whose other files stay, the new
    files are renamed one after the other, after all of them were synced to the disk.

    Raises:
        OSError: which names `folder`, if the disk is full, say; what was there before stays.
    """
    if _UNFINISHED.fullmatch(folder.name):  # part of what `replacing` will sync and rename
        folder.mkdir()
        yield folder
        return
    with _written_beside(folder) as unfinished:
        unfinished.mkdir()
        yield unfinished
        _all_to_disk(unfinished)
        if folder.is_dir() and any(folder.iterdir()):
            for part in sorted(unfinished.iterdir()):
                os.replace(part, folder / part.name)
            unfinished.rmdir()
            _to_disk(folder)
        else:
            os.replace(unfinished, folder)
    _to_disk(folder.parent)


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a small file atomically."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def require_place(path: Path, option: str) -> None:
    """Make sure, before any work, that a file can be written.

    Args:
        path: the file, which may be there or not, as may the folders on its way.
        option: that named it, for the message.

    Raises:
        ValueError: if it cannot.
    """
    if "\0" in str(path):
        raise ValueError(f"{option}: expected a file's name, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"{option}: expected a file, got a folder: {path}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{option}: {path}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: {path}: {folder} cannot be written to")


def remove(folder: Path) -> None:
    """Rename a folder, then delete it: half deleted it must not pass for a whole one."""
    doomed = _beside(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def set_aside(path: Path) -> Path:
    """Free the place of what cannot be used: rename it, in place of what was set aside before."""
    aside = path.with_name(path.name + _DAMAGED)
    if aside.exists():
        remove(aside)
    path.rename(aside)
    return aside


def clean(folder: Path) -> None:
    """Delete what killed processes left half written or half removed, in all subfolders."""
    for leftover in [*folder.rglob(".unfinished-*")]:
        match = _UNFINISHED.fullmatch(leftover.name)
        if match and not _is_at_work(int(match[1])):
            _delete(leftover)


@contextmanager
def _written_beside(path: Path) -> Iterator[Path]:
    """A hidden place that an error removes; folders on the way are made, and removed with it."""
    made = [parent for parent in path.parents if not parent.exists()]
    unfinished = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            yield unfinished
    except BaseException as error:
        _delete(unfinished)
        remove_empty(made)
        if isinstance(error, OSError) and str(error.filename).startswith(str(unfinished)):
            error.filename = str(path)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error name the file; writing to a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.strerror:
            error.filename = str(path)
        raise


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, inner ones first, up to one that is not empty or not there."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _beside(path: Path) -> Path:
    """A hidden name that nobody else takes; it tells which process is at work."""
    return path.with_name(f".unfinished-{path.name}.{os.getpid()}.{secrets.token_hex(4)}")


def _is_at_work(process: int) -> bool:
    """Whether another process of this machine has that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _all_to_disk(path: Path) -> None:
    for part in (*path.rglob("*"), path):
        _to_disk(part)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
