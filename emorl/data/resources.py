"""What this machine can hold: asked before memory is taken, to refuse what is impossible."""

from __future__ import annotations

import os

_OWN_MEMORY = 16 << 20  # a forked worker's, at the least


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
