"""The largest batch that a given memory has room for."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence

import torch

from emorl.bench.workers import Step

SMALL = (1, 2, 4)  # batches whose peaks make the line
LINE = "straight line through the peaks of batches in fresh processes"
BISECTION = "bisection under the allocator's limit"


def line_through(peaks: Mapping[int, int]) -> tuple[float, float]:
    """The straight line of least squares through batch -> bytes: bytes at 0, and for an image."""
    mean_x, mean_y = (sum(values) / len(peaks) for values in (peaks.keys(), peaks.values()))
    spread = sum((x - mean_x) ** 2 for x in peaks)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in peaks.items()) / spread
    return mean_y - slope * mean_x, slope


def on_line(peaks: Mapping[int, int], memory: int) -> int | None:
    """The largest batch whose peak on the line is within `memory`; None for a line that falls."""
    start, slope = line_through(peaks)
    return max(0, int((memory - start) / slope)) if slope > 0 else None


def bisect(fits: Callable[[int], bool], guess: int) -> int:
    """The largest batch that fits, 0 if not even one image does.

    Args:
        fits: whether a batch fits; it does up to some size.
        guess: where to begin, 1 or more.
    """
    low, high = 0, guess
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def on_gpu(build: Callable[[int], Mapping[str, Step]], part: str, memory: int, guess: int) -> int:
    """The largest batch whose step runs while the allocator may take `memory` bytes.

    To be called in a process of its own, whose allocator is limited from then on.
    """
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory / whole))

    def fits(batch: int) -> bool:
        gc.collect()
        torch.cuda.empty_cache()
        try:
            build(batch)[part]()
        except torch.cuda.OutOfMemoryError:
            return False
        return True

    return bisect(fits, guess)


def others_than(batch: int) -> Sequence[int]:
    """The small batches whose peaks are to be measured, where that of `batch` is known."""
    others = [small for small in (*SMALL, 3) if small != batch]
    return others[:2]
