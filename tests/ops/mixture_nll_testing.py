"""How far rounding may move the results of mixture_nll."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emorl.ops import mixture_nll


def results(inputs: dict[str, Tensor], backend: str, **options: Any) -> dict[str, Tensor]:
    """The value, and the gradient of a weighted sum of it for each leaf."""
    nll = mixture_nll(**inputs, backend=backend, **options)
    weights = torch.linspace(0.5, 1.5, len(nll), dtype=torch.float64).to(nll)
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    grads = torch.autograd.grad((nll * weights).sum(), list(leaves.values()))
    named = {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"nll": nll.detach(), **named}


def roundings(
    inputs: dict[str, Tensor],
    *,
    sigma: float | Tensor,
    kind: str,
    rgb_activation: str,
    density: bool,
) -> dict[str, float]:
    """For `assert_as_accurate_as_plain`: each step's rounding, passed on by its derivative.

    In units. A mean y is off by 4 of its own size (an exponential and a division), a deviation
    d = (x - y) / sigma by that of x and y over sigma, and 2 of its own; a logit's exponential by
    the logit. A sum over K slots adds K of its terms. A probability is off by its logarithm's
    error, and a product of factors by the sum of theirs. Sums over pixels add sqrt(n).
    """
    image, rgb, logits = (inputs[x].detach().double() for x in ("image", "rgb", "mask_logits"))
    x, slots = image[:, None], rgb.shape[1]
    y = rgb.sigmoid() if rgb_activation == "sigmoid" else rgb
    slope = y * (1 - y) if rgb_activation == "sigmoid" else torch.ones_like(y)
    scale = torch.as_tensor(sigma, dtype=torch.float64).view(-1, 1, 1, 1)
    mask = logits.softmax(dim=1)
    off_share = 2 * (logits - logits.amax(dim=1, keepdim=True)).abs() + logits.abs() + slots + 4
    of_mask = off_share + (mask * off_share).sum(dim=1, keepdim=True)  # relative
    off_y = 4 * y.abs() + 2 * rgb.abs() * slope
    if kind == "gaussian":
        mean = (mask * y).sum(dim=1, keepdim=True)
        off_mean = (mask * (off_y + y.abs() * (of_mask + slots))).sum(dim=1, keepdim=True)
        d = (x - mean).abs() / scale
        off_d = (x.abs() + mean.abs() + off_mean) / scale + 2 * d
        nll, off = 0.5 * d.square(), d * (off_d + 2 * d)
        gradient = mask * slope / scale
        grad_rgb = gradient * (d * (of_mask + 8) + off_d) + mask * d / scale * 4 * off_y
        apart = (y - mean).abs()
        off_logit = mask / scale * (apart * (d * (of_mask + 8) + off_d) + d * (off_y + off_mean))
        grad_logit = off_logit.sum(dim=2, keepdim=True)
    else:
        d = (x - y).abs() / scale
        off_d = (x.abs() + off_y) / scale + 2 * d
        score, off_score = 0.5 * d.square() + scale.log(), d * off_d + d.square()
        off_score = off_score + 2 * scale.log().abs()
        if kind == "mixture_joint":
            width = d.shape[2]
            score, off_score = (
                s.sum(dim=2, keepdim=True) for s in (score, (width + 1) * off_score)
            )
        log = logits.log_softmax(dim=1) - score
        share = log.softmax(dim=1)
        off_log = off_share + off_score + score.abs() + log.abs()
        nll = log.logsumexp(dim=1, keepdim=True).abs()
        off = (share * off_log).sum(dim=1, keepdim=True) + slots + 2 + nll
        of_share = off_log + off + slots + 4  # relative
        grad_rgb = share / scale * (slope * (d * (of_share + 8) + off_d) + d * 4 * off_y)
        groups = share.shape[2]
        grad_logit = (share * of_share).sum(dim=2, keepdim=True) + groups * mask * (of_mask + 2)
    count = image[0].numel() if len(image) else 0
    constant = count * (torch.as_tensor(sigma).double().log().abs().max().item() + 1)
    total = off.sum(dim=(1, 2, 3, 4)) + count**0.5 * nll.sum(dim=(1, 2, 3, 4)) + 2 * constant
    # A narrow dtype stores the gradients; the weights of the images are at most 1.5.
    allowed = {"nll": total, "grad_rgb": 1.5 * grad_rgb, "grad_mask_logits": 1.5 * grad_logit}
    return {n: t.max().item() if t.numel() else 0.0 for n, t in allowed.items()}
