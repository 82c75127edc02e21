"""Lets matplotlib be imported in the processes of a notebook: import this first.

They inherit MPLBACKEND, the name of a backend that the notebook alone may have, and without that
backend matplotlib cannot be imported. The figures of this package need none.
"""

from __future__ import annotations

import importlib.util
import os

_PACKAGES = {"inline": "matplotlib_inline", "ipympl": "ipympl", "widget": "ipympl"}


def _forget_missing_backend() -> None:
    name = os.environ.get("MPLBACKEND", "")
    package = _PACKAGES.get(name)
    if name.startswith("module://"):
        package = name.removeprefix("module://").partition(".")[0]
    if package is not None and not (package and importlib.util.find_spec(package)):
        del os.environ["MPLBACKEND"]


_forget_missing_backend()
