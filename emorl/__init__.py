"""emorl: fast unsupervised object-centric learning (EfficientMORL and its baselines)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("emorl")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "unknown"

__all__ = ["__version__"]
