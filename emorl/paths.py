"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

from emorl.fields import shown

_LONGEST = 300  # characters in a message


def local(path: str | Path) -> Path:
    """A path with "~" as the user's home folder, also where no shell has seen it: `--out=~/x`.

    Raises:
        ValueError: if no file can be called so.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str) or not is_path(text):
        raise ValueError(f"expected a path, got {shown(text)}")
    return Path(os.path.expanduser(text))  # leaves an unknown user's as it is


def in_line(path: str | Path) -> str:
    """A path for a message of one line: in quotes, and shortened, if it is no such line."""
    text = str(path)
    return text if text.isprintable() and len(text) <= _LONGEST else shown(text)


def real(path: Path) -> Path:
    """The absolute path of what a path leads to, or would lead to, without links on the way."""
    return Path(os.path.realpath(path))  # Path.resolve raises an error for links in a circle


def require_regular(path: str | Path) -> None:
    """Refuse a device, a pipe or a socket, where reading may never end, and writing loses it.

    Raises:
        ValueError: if one is there.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError(f"{path}: expected a file, got a device or a pipe")


def is_path(text: str) -> bool:
    """Whether text can be a path: not blank, without NUL, and of whole characters alone.

    Half a character is what Python makes of bytes of a name that are no text in this locale.
    """
    try:
        text.encode()
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return bool(text.strip()) and "\0" not in text
