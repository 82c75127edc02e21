"""How the process keeps its memory on the CPU."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_BLOCK = 32 << 20  # the most that glibc accepts as its mmap threshold
_KEPT = 1 << 30
_PAD = 64 << 20


def keep_heap() -> bool:
    """Let glibc keep freed memory for the next tensors instead of giving it back to the kernel.

    A training step frees and allocates the same large tensors over and over; by default each new
    one costs a page fault per 4 KiB. The price is that the process keeps up to 1 GiB that it does
    not use. EMORL_KEEP_HEAP=0 leaves the allocator alone.

    Returns:
        Whether it was done: on Linux with glibc, unless switched off.
    """
    if os.environ.get("EMORL_KEEP_HEAP", "1") == "0" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    settings = {
        _M_MMAP_THRESHOLD: _LARGEST_BLOCK,
        _M_TRIM_THRESHOLD: _KEPT,
        _M_TOP_PAD: _PAD,
    }
    accepted = [mallopt(name, value) == 1 for name, value in settings.items()]
    return all(accepted)
