"""matplotlib without what users have set for their own figures: import this first.

A process started from a notebook inherits MPLBACKEND, the name of a backend that the notebook alone
may have, and with a name that it does not know matplotlib cannot be imported. The figures of this
package need no backend. A user's matplotlibrc may ask for LaTeX, or for white text.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGES = {"inline": "matplotlib_inline", "ipympl": "ipympl", "widget": "ipympl"}


def _import_matplotlib() -> None:
    """Import matplotlib without a backend, then let it have the environment's, if that exists."""
    name = os.environ.pop("MPLBACKEND", "")
    import matplotlib

    if not name or not _is_installed(name):
        return
    try:
        matplotlib.rcParams["backend"] = name
    except ValueError:
        return
    os.environ["MPLBACKEND"] = name


def _is_installed(backend: str) -> bool:
    """Whether a notebook's backend is there, so far as its name tells; others are matplotlib's."""
    package = _PACKAGES.get(backend)
    if backend.startswith("module://"):
        package = backend.removeprefix("module://").partition(".")[0]
    return package is None or bool(package and importlib.util.find_spec(package))


@contextmanager
def own_settings() -> Iterator[None]:
    """In which matplotlib's settings are its own; also for a function that draws or saves."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


_import_matplotlib()
