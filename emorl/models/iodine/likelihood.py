"""Mixture likelihoods of images, given the slots' means and mask logits.

Legend: B batch, K slots, C channels of a mixture (3, or 1 where it is joint), H W image.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.ops import Backend, mixture_nll, mixture_nll_and_gradient
from emorl.ops.library import full_precision, recordable

MixtureKind = Literal["mixture", "mixture_joint", "logistic"]


def log_components(image: Tensor, means: Tensor, kind: MixtureKind, scale: float) -> Tensor:
    """Log-likelihood of every pixel under every slot, in nats.

    Args:
        image: [B, 3, H, W] in [0, 1].
        means: [B, K, 3, H, W].
        kind: "mixture" is Gaussian and mixes each channel alone, without log(2 pi) / 2, as in
            the EfficientMORL authors' code; "mixture_joint" is Gaussian, "logistic" logistic, and
            both mix all channels of a pixel together, as DeepMind's IODINE does.
        scale: standard deviation of the Gaussian, or scale of the logistic distribution.

    Returns:
        [B, K, C, H, W].
    """
    error = (image[:, None] - means) / scale
    if kind == "mixture":
        return -error.square() / 2 - math.log(scale)
    if kind == "mixture_joint":
        density = -error.square() / 2 - 0.5 * math.log(2 * math.pi)
    else:
        density = error - 2 * F.softplus(error, threshold=50)
    return density.sum(dim=2, keepdim=True) - 3 * math.log(scale)


def mixture_likelihood(
    image: Tensor, decoded: Tensor, kind: MixtureKind, scale: float, backend: Backend
) -> Tensor:
    """Negative log-likelihood of images in nats, [B].

    Args:
        image: [B, 3, H, W] in [0, 1].
        decoded: means and mask logits, [B, K, 4, H, W].
        kind: as in `log_components`.
        scale: likewise.
        backend: of `mixture_nll`, which serves the Gaussian kinds.
    """
    if kind != "logistic":
        return mixture_nll(
            image,
            decoded,
            sigma=scale,
            kind=kind,
            rgb_activation="none",
            density=kind == "mixture_joint",
            backend=backend,
        )
    means, logits = decoded[:, :, :3], decoded[:, :, 3:]
    weighted = logits.log_softmax(dim=1) + log_components(image, means, kind, scale)
    return -weighted.logsumexp(dim=1).sum(dim=(1, 2, 3))


def likelihood_and_gradient(
    image: Tensor,
    decoded: Tensor,
    kind: MixtureKind,
    scale: float,
    backend: Backend,
    factor: float,
) -> tuple[Tensor, Tensor]:
    """`mixture_likelihood`, and the gradient of `factor` times its sum, like `decoded`; detached.

    Args: as `mixture_likelihood`'s, and the factor.
    """
    if kind != "logistic":
        return mixture_nll_and_gradient(
            image,
            decoded,
            scale=factor,
            sigma=scale,
            kind=kind,
            rgb_activation="none",
            density=kind == "mixture_joint",
            backend=backend,
        )
    with torch.inference_mode(False), torch.enable_grad():
        leaf = recordable(decoded).detach().requires_grad_()
        nll = mixture_likelihood(recordable(image).detach(), leaf, kind, scale, backend)
        with full_precision(nll):
            (gradient,) = torch.autograd.grad(nll.sum() * factor, leaf)
    return nll.detach(), gradient
