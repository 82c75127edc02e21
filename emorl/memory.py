"""Memory: reused on the CPU, taken by a piece of work, and asked for before it is taken."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile

from emorl.ops.extension import extension

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_BLOCK = 32 << 20  # the most that glibc accepts as its mmap threshold
_KEPT = 1 << 30
_PAD = 64 << 20
_OWN_MEMORY = 16 << 20  # a forked worker's, at the least


def keep_memory() -> bool:
    """Keep freed memory for the next tensors instead of giving it back to the kernel.

    A training step frees and allocates the same large tensors over and over; by default each new
    one costs a page fault per 4 KiB. From now on tensors of 1 MiB and more are handed out by an
    allocator of the native extension (csrc/tensor_memory.cpp), and a training step soon causes
    hardly any page fault. What these tensors use and what is kept for them is together at most a
    quarter (and 2 MiB) more than they ever used at the same time. All else stays in glibc's heap,
    which keeps up to 1 GiB that the process does not use. EMORL_KEEP_MEMORY=0 leaves both alone.

    Returns:
        Whether anything was done: on Linux with the extension or glibc, unless switched off.
    """
    if os.environ.get("EMORL_KEEP_MEMORY", "1") == "0" or not sys.platform.startswith("linux"):
        return False
    native = extension()
    tensors = native is not None and native.keep_tensor_memory()
    return _keep_heap() or tensors


def most_allocated(work: Callable[[], object]) -> int:
    """Return the most bytes that tensors on the CPU take at one time of some work.

    Each allocation and each release is counted, so that the number is exact and what the process
    held before has no part in it.

    Example:
        >>> most_allocated(lambda: torch.zeros(1024))
        4096
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler prints when it ran
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = record.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return max(accumulate(size for _, size in sorted(changes)), default=0)


def physical_memory() -> int:
    """Bytes of main memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def most_processes() -> int:
    """How many more processes of Python this machine has memory for, each with 16 MB of its own."""
    return physical_memory() // _OWN_MEMORY


def require_memory(needed: int, what: str) -> None:
    """Refuse what would take more than all of the machine's memory.

    Args:
        needed: bytes, rather too few than too many.
        what: name of a setting or a file, and what is too large.

    Raises:
        ValueError: with both numbers.
    """
    if needed > (there := physical_memory()):
        raise ValueError(f"{what} would take {size(needed)}; this machine has {size(there)}")


def require_slots(slots: int, image_size: tuple[int, int]) -> None:
    """Refuse slots that cannot be decoded: 4 float32 numbers for each pixel, of one image alone.

    Raises:
        ValueError: with both numbers.
    """
    height, width = image_size
    require_memory(16 * slots * height * width, f"{slots} slots of {height}x{width} pixels")


def size(count: int) -> str:
    """A number of bytes for a reader."""
    unit = 0
    number = float(count)
    while number >= 1000 and unit < 6:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[unit]}"


def _keep_heap() -> bool:
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
