"""Seeds that depend on nothing but their arguments."""

from __future__ import annotations

import hashlib


def seed_for(*parts: int | str) -> int:
    """A seed for `torch.Generator.manual_seed`, a pure function of `parts`.

    Training seeds its noise with `seed_for("noise", seed, step)` at every step, so that a
    checkpoint needs no generator's state and a resumed run draws what an undisturbed one draws.

    Returns:
        A number in [0, 2**63).
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
