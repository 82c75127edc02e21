"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def local(path: str | Path) -> Path:
    """A path with "~" as the user's home folder, also where no shell has seen it: `--out=~/x`."""
    return Path(os.path.expanduser(path))  # leaves an unknown user's as it is
