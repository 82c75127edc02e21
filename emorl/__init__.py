"""emorl: fast unsupervised object-centric learning (EfficientMORL and its baselines)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emorl.bench.macs import macs

try:
    __version__ = version("emorl")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "unknown"

__all__ = ["__version__", "macs"]


def __dir__() -> list[str]:
    return [*globals(), "macs"]


def __getattr__(name: str) -> Any:
    """What needs torch, loaded when it is first asked for."""
    if name != "macs":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from emorl.bench.macs import macs

    return macs
