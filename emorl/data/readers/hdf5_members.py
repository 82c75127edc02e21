"""What an HDF5 file holds under its names, and complaints about it that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from emorl.fields import escaped

_LISTED = 12  # names in a complaint


@contextmanager
def named_errors(path: Path, where: str = "") -> Iterator[None]:
    """Whatever h5py raises about a file, as one line that begins with the file's name."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        text = text_of(" ".join(str(error).split()))
        if not text.startswith(f"{path}: "):
            text = f"{path}: {where}{text}"
        raise ValueError(text) from None


def open_file(path: Path) -> h5py.File:
    """The file, open for reading.

    Raises:
        ValueError: if it is no HDF5 file, or a cut one.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not a readable HDF5 file: {error}") from None


def member(group: h5py.Group, name: str) -> Any:
    """What a group has under a name; None if that is nothing, or a link that leads nowhere."""
    try:
        return group.get(name)
    except (OSError, RuntimeError):
        return None


def data_set(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """The numbers that a group has under a name; None if it has nothing there.

    Raises:
        ValueError: if there is something else.
    """
    if name not in group:
        return None
    found = member(group, name)
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        where = f"{group.name.rstrip('/')}/{name}"
        raise ValueError(f"expected {where} to be a data set, got {kind(found)}")
    if found.dtype.kind not in "buif":
        raise ValueError(f"expected {found.name} to hold numbers, got {found.dtype}")
    return found


def kind(found: Any) -> str:
    """What an object of a file is, in words."""
    if found is None:
        return "a link that leads nowhere"
    if isinstance(found, h5py.Dataset):
        return "an empty data set" if found.shape is None else f"a data set {list(found.shape)}"
    return "a group" if isinstance(found, h5py.Group) else "a data type"


def contents(group: h5py.Group) -> str:
    """The names in a group, in one line."""
    names = [_listed(group, name) for name in group]
    shown = [*names[:_LISTED], "..."] if len(names) > _LISTED else names
    return ", ".join(shown) or "nothing"


def _listed(group: h5py.Group, name: str) -> str:
    found = member(group, name)
    if found is None:
        return f"{text_of(name)} ({kind(found)})"
    return f"{text_of(name)}/" if isinstance(found, h5py.Group) else text_of(name)


def text_of(name: str | bytes) -> str:
    """A name as text of one line: what does not print, or is no UTF-8, is escaped."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    return escaped(text)
