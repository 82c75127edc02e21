"""Atomic writing and removal of files and folders, and reading of JSON."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emorl.paths import real, require_regular
from emorl.runs.trained import require_apart

_UNFINISHED = re.compile(r"\.unfinished-.*\.(\d+)\.[0-9a-f]{8}")
_DAMAGED = ".damaged"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename what was written there to `path`.

    It is synced to the disk before it is renamed. So readers find the old file or folder or the
    whole new one, never a part, also after a process that was killed. Parent folders are made. A
    link stays one: what it leads to is replaced.

    Raises:
        OSError: which names `path`, if the disk is full, say; what was there before stays.
        ValueError: if a device or a pipe is there.
    """
    path = _place_of(path)
    with _written_beside(path) as unfinished:
        yield unfinished
        _all_to_disk(unfinished)
        os.replace(unfinished, path)
    _to_disk(path.parent)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files then replace those of the same names in `folder`.

    A new or empty folder is replaced atomically. In another one, whose other files stay, and in one
    that cannot be replaced, the new files are renamed one after the other, after all of them were
    synced to the disk.

    Raises:
        OSError: which names `folder`, if the disk is full, say; what was there before stays.
    """
    if _UNFINISHED.fullmatch(folder.name):  # part of what `replacing` will sync and rename
        folder.mkdir()
        yield folder
        return
    folder = _place_of(folder)
    stays = folder.is_dir() and (any(folder.iterdir()) or _is_held(folder))
    with _written_beside(folder, within=stays) as unfinished:
        unfinished.mkdir()
        yield unfinished
        _all_to_disk(unfinished)
        if stays:
            for part in sorted(unfinished.iterdir()):
                os.replace(part, folder / part.name)
            unfinished.rmdir()
        else:
            os.replace(unfinished, folder)
    _to_disk(folder if stays else folder.parent)


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a small file atomically."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        ValueError: in one line that names the file, if it is not JSON, or a device or a pipe.
        OSError: if it cannot be read.
    """
    require_regular(path)
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deep to be read") from None


def require_place(path: Path, option: str) -> None:
    """Make sure, before any work, that a file can be written.

    Args:
        path: the file, which may be there or not, as may the folders on its way.
        option: that named it, for the message.

    Raises:
        ValueError: if it cannot, or belongs among the trained models that come along.
    """
    require_apart(path, option)
    if path.is_dir():
        raise ValueError(f"{option}: expected a file, got a folder: {path}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{option}: expected a file, got a device or a pipe: {path}")
    place = real(path) if path.is_symlink() else path.absolute()
    folder = next(parent for parent in place.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise ValueError(f"{option}: {path}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: {path}: {folder} cannot be written to")


def remove(folder: Path) -> None:
    """Rename a folder, then delete it: half deleted it must not pass for a whole one."""
    doomed = _beside(folder)
    folder.rename(doomed)
    _delete(doomed)


def set_aside(path: Path) -> Path:
    """Free the place of what cannot be used: rename it, in place of what was set aside before."""
    aside = path.with_name(path.name + _DAMAGED)
    if os.path.lexists(aside):
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
def _written_beside(path: Path, *, within: bool = False) -> Iterator[Path]:
    """A hidden place that an error removes; folders on the way are made, and removed with it.

    It is beside `path`, or `within` that folder: what is beside may be another disk's.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    unfinished = _beside(path / path.name if within else path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            yield unfinished
    except BaseException as error:
        with suppress(OSError):  # the error that is raised tells more
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


def _place_of(path: Path) -> Path:
    """Where a file or folder is written: a link's target, and a folder's own name for "." too.

    Raises:
        ValueError: if a device, a pipe or a socket is there, which would be replaced.
    """
    require_regular(path)
    return real(path) if path.is_symlink() or path.name in ("", "..") else path


def _is_held(folder: Path) -> bool:
    """Whether a folder cannot make place for another: a disk's, and the one we are in."""
    return os.path.ismount(folder) or folder.samefile(os.curdir)


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
    if path.is_dir() and not path.is_symlink():
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
