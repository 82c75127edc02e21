"""What this machine can hold: asked before memory is taken, to refuse what is impossible."""

from __future__ import annotations

from emorl.memory import physical_memory, require_memory, require_slots, size

__all__ = ["most_processes", "physical_memory", "require_memory", "require_slots", "size"]

_OWN_MEMORY = 16 << 20  # a forked worker's, at the least


def most_processes() -> int:
    """How many more processes of Python this machine has memory for, each with 16 MB of its own."""
    return physical_memory() // _OWN_MEMORY
