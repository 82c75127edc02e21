"""Negative log-likelihood of an image under a mixture of slots.

Legend: B batch, K slots, C channels, H W image.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor

Likelihood = Literal["gaussian", "mixture"]


def mixture_nll(
    image: Tensor, rgb: Tensor, mask_logits: Tensor, *, sigma: float, kind: Likelihood = "mixture"
) -> Tensor:
    """Negative log-likelihood in nats, summed over pixels and channels.

    With masks m = softmax over slots of the logits and means y = sigmoid(rgb):

        gaussian: -sum_{c,p} log N(x_cp; sum_k m_kp y_kcp, sigma^2)
        mixture:  -sum_{c,p} log sum_k m_kp N(x_cp; y_kcp, sigma^2)

    where log N leaves out log(2 pi) / 2, as the released code does. The mixture is per channel.

    Args:
        image: [B, C, H, W] in [0, 1].
        rgb: appearance before its sigmoid, [B, K, C, H, W].
        mask_logits: [B, K, 1, H, W].
        sigma: standard deviation of a pixel, > 0.
        kind: "gaussian" or "mixture".

    Returns:
        [B], float32 or wider.

    Raises:
        ValueError: if kind is unknown.

    Source: Emami et al. 2021, appendix F; the released code's utilities.
    """
    if kind not in get_args(Likelihood):
        raise ValueError(
            f"mixture_nll: kind must be one of {[*get_args(Likelihood)]}, got {kind!r}"
        )
    if kind == "gaussian":
        mean = (mask_logits.softmax(dim=1) * rgb.sigmoid()).sum(dim=1)
        error = (image - mean).square().sum(dim=(1, 2, 3)) / (2 * sigma**2)
        return error + math.log(sigma) * image[0].numel()
    error = (image[:, None] - rgb.sigmoid()).square() / (2 * sigma**2)
    log_likelihood = (mask_logits.log_softmax(dim=1) - error).logsumexp(dim=1)
    return math.log(sigma) * image[0].numel() - log_likelihood.sum(dim=(1, 2, 3))
