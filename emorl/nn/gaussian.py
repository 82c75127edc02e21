"""Diagonal Gaussians, parameterised as in EfficientMORL by a mean and a raw variance.

Legend: M slots of a batch (batch x slots), D slot width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.nn.noise import standard_normal


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

    @classmethod
    def unpack(cls, parameters: Tensor) -> Gaussian:
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
