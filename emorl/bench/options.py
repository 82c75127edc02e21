"""What a suite of `emorl bench` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """The command line, checked.

    Attributes:
        models: keys of the suite's models, in its order.
        sizes: sides of the square images, in pixels, ascending.
        batch: images at once, where time is measured.
        device: "cpu" or "cuda".
        threads: of PyTorch.
        official: a checkout of the released code, if there is one.
        budget: seconds that everything may take.
        memory: bytes, for which the largest batch is sought.
    """

    models: tuple[str, ...]
    sizes: tuple[int, ...]
    batch: int
    device: str
    threads: int
    official: Path | None
    budget: float
    memory: int
