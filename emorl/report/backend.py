"""Lets matplotlib be imported in the processes of a notebook: import this first.

They inherit MPLBACKEND, the name of a backend that the notebook alone may have, and without that
backend matplotlib cannot be imported. The figures of this package need none.
"""

from __future__ import annotations

import importlib.util
import os


def _forget_missing_backend() -> None:
    kind, _, module = os.environ.get("MPLBACKEND", "").partition("://")
    package = module.partition(".")[0]
    if kind == "module" and not (package and importlib.util.find_spec(package)):
        del os.environ["MPLBACKEND"]


_forget_missing_backend()
