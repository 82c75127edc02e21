"""Diagonal Gaussians by mean and raw variance, as in EfficientMORL, and the noise of a batch.

Legend: M slots of a batch (batch x slots), D slot width.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
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


class Gaussian(NamedTuple):
    """Diagonal Gaussians with variance softplus(raw) + 1e-5.

    Attributes:
        mean: [M, D].
        raw: [M, D], unconstrained; clamped at 80 from above, as in the released code.
    """

    mean: Tensor
    raw: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviation, [M, D]."""
        return (F.softplus(self.raw.clamp(max=80.0)) + 1e-5).sqrt()

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """A reparameterised sample, [M, D]."""
        return torch.addcmul(self.mean, self.scale, standard_normal(self.mean, generator))

    def packed(self) -> Tensor:
        """Mean and raw variance side by side, [M, 2D]: the paper's lambda."""
        return torch.cat([self.mean, self.raw], dim=1)

    def moved(self, update: Gaussian) -> Self:
        """These parameters plus those of `update`."""
        return type(self)(self.mean + update.mean, self.raw + update.raw)

    def norm(self) -> Tensor:
        """Mean over slots of the norm of the parameters."""
        return self.packed().norm(dim=1).mean()

    @classmethod
    def unpack(cls, parameters: Tensor) -> Self:
        """The inverse of `packed`."""
        return cls(*parameters.chunk(2, dim=1))


class SoftplusGaussian(Gaussian):
    """Diagonal Gaussians with variance softplus(raw), as in DeepMind's IODINE."""

    @property
    def scale(self) -> Tensor:
        """Standard deviation, [M, D]."""
        return F.softplus(self.raw).sqrt()


def kl_divergence(posterior: Gaussian, prior: Gaussian | None) -> Tensor:
    """KL(posterior || prior) in nats, summed over D.

    Args:
        posterior: [M, D].
        prior: [M, D], or None for the standard normal.

    Returns:
        [M].
    """
    scale = posterior.scale
    if prior is None:
        terms = scale.square() + posterior.mean.square() - 1 - 2 * scale.log()
    else:
        ratio = (scale / prior.scale).square()
        distance = ((posterior.mean - prior.mean) / prior.scale).square()
        terms = ratio + distance - 1 - ratio.log()
    return 0.5 * terms.sum(dim=1)
