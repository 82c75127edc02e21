"""Noise that belongs to an image's place in its batch, however the batch is shared out."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class BatchShare(torch.Generator):
    """The generator of one of several equal shares of a batch, in the batch's order.

    Every share draws the noise of the whole batch and keeps its own, and refinement descends the
    whole batch's mean. So a batch gives the same numbers, up to rounding, in one process, in
    several with a share each, or in parts one after the other.

    Attributes:
        index: of the share, 0 to shares - 1.
        shares: that make up the batch.
    """

    index: int = 0
    shares: int = 1


def share_of(generator: torch.Generator | None) -> tuple[int, int]:
    """Index and number of shares; one share, the whole batch, unless the generator says more."""
    return (generator.index, generator.shares) if isinstance(generator, BatchShare) else (0, 1)


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `like`.

    Args:
        like: [B, ...] or [B * K, ...], those of an image one after the other.
        generator: of the noise; None for the global one.
    """
    if generator is None:
        return torch.randn(like.shape, device=like.device, dtype=like.dtype)
    return _drawn(like, generator)


@torch.compiler.disable  # which cannot look into generators
def _drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    index, shares = share_of(generator)
    shape = (shares * len(like), *like.shape[1:])
    noise = torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
    return noise.chunk(shares)[index]


def seed_for(*parts: int | str) -> int:
    """A seed for `torch.Generator.manual_seed`, a pure function of `parts`.

    Training seeds its noise with `seed_for("noise", seed, step)` at every step, so that a
    checkpoint needs no generator's state and a resumed run draws what an undisturbed one draws.

    Returns:
        A number in [0, 2**63).
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
