"""Packages that only some functions need, and the extras of emorl that install them."""

from __future__ import annotations

import importlib

_EXTRAS = {
    "sklearn": "evaluation",
    "torchmetrics": "lpips",
    "torchvision": "lpips",
    "imageio_ffmpeg": "video",
}
_OTHERS = "train"


def not_installed(package: str) -> str:
    """One line about a package that is missing, with what installs it."""
    return f"{package} is not installed: pip install 'emorl[{_EXTRAS.get(package, _OTHERS)}]'"


def require_package(package: str) -> None:
    """Refuse to begin what a missing package would end.

    Raises:
        ModuleNotFoundError: saying what installs it.
    """
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # which the package itself lacks
            raise
        raise ModuleNotFoundError(not_installed(package), name=package) from None
