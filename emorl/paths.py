"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

_LONGEST = 60  # characters in a message


def local(path: str | Path) -> Path:
    """A path with "~" as the user's home folder, also where no shell has seen it: `--out=~/x`.

    Raises:
        ValueError: if no file can be called so.
    """
    if not is_path(os.fspath(path)):
        raise ValueError(f"expected a path, got {str(path)[:_LONGEST]!r}")
    return Path(os.path.expanduser(path))  # leaves an unknown user's as it is


def real(path: Path) -> Path:
    """The absolute path of what a path leads to, or would lead to, without links on the way."""
    return Path(os.path.realpath(path))  # Path.resolve raises an error for links in a circle


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
