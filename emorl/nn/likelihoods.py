"""The likelihood of images under a mixture of slots, as a module.

Legend: B batch, K slots, C channels, H W image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from emorl.nn.arguments import require
from emorl.ops import Backend, mixture_nll
from emorl.ops.mixture_nll import Likelihood, RGBActivation


class Mixture(NamedTuple):
    """What decoded slots amount to.

    Attributes:
        reconstruction: the masked colours' sum, [B, C, H, W].
        masks: how much of a pixel is a slot's, [B, K, 1, H, W]; their sum over slots is 1.
        colours: of each slot, [B, K, C, H, W].
    """

    reconstruction: Tensor
    masks: Tensor
    colours: Tensor


class MixtureLikelihood(nn.Module):
    """Negative log-likelihood of images under slots that a decoder made, in nats.

    The fused operator `emorl.ops.mixture_nll` as a module, which keeps its options:

        gaussian:       -log N(x; sum_k m_k y_k, sigma^2)
        mixture:        -log sum_k m_k N(x; y_k, sigma_k^2)            for each channel
        mixture_joint:  -log sum_k m_k prod_c N(x_c; y_kc, sigma_k^2)  for each pixel

    summed over what follows "for each", with masks m = softmax over slots of the last channel and
    colours y, the sigmoid of the others.

    Args:
        sigma: standard deviation of a pixel, > 0: a number, or (not with "gaussian") a tensor [K]
            with one for each slot, which is then a buffer. Not trained.
        kind: "gaussian", "mixture" or "mixture_joint".
        rgb_activation: "sigmoid", or "none" where colours have no bounds.
        density: whether the value is the full density's, log(2 pi) / 2 more for each number.
        backend: of the op.

    Raises:
        ValueError: if an argument is not possible, or sigma requires gradients.

    Example:
        >>> likelihood = MixtureLikelihood(sigma=0.3)
        >>> images, decoded = torch.rand(2, 3, 8, 8), torch.randn(2, 5, 4, 8, 8)
        >>> likelihood(images, decoded).shape, likelihood.mixture(decoded).masks.shape
        (torch.Size([2]), torch.Size([2, 5, 1, 8, 8]))
    """

    sigma: float | Tensor

    def __init__(
        self,
        *,
        sigma: float | Tensor,
        kind: Likelihood = "mixture",
        rgb_activation: RGBActivation = "sigmoid",
        density: bool = False,
        backend: Backend = "auto",
    ) -> None:
        owner = type(self).__name__
        require(owner, Likelihood, kind=kind)
        require(owner, RGBActivation, rgb_activation=rgb_activation)
        require(owner, bool, density=density)
        require(owner, Backend, backend=backend)
        if isinstance(sigma, Tensor) and sigma.requires_grad:
            raise ValueError(f"{owner}: sigma: is not trained, expected sigma.detach()")
        super().__init__()
        self.kind, self.rgb_activation = kind, rgb_activation
        self.density, self.backend = density, backend
        if isinstance(sigma, Tensor):
            self.register_buffer("sigma", sigma.detach())
        else:
            self.sigma = sigma

    def forward(self, images: Tensor, decoded: Tensor) -> Tensor:
        """Score images.

        Args:
            images: [B, C, H, W].
            decoded: colours before their activation and, in the last channel, mask logits,
                [B, K, C + 1, H, W].

        Returns:
            [B], in the common dtype of the arguments, but at least float32.

        Raises:
            ValueError: if shapes, dtypes, devices or the module's options do not fit.
        """
        return mixture_nll(
            images,
            decoded,
            sigma=self.sigma,
            kind=self.kind,
            rgb_activation=self.rgb_activation,
            density=self.density,
            backend=self.backend,
        )

    def mixture(self, decoded: Tensor) -> Mixture:
        """Reconstruction, masks and colours of decoded slots [B, K, C + 1, H, W].

        Raises:
            ValueError: if they are no floats of that shape, of one slot and colour at least.
        """
        got = _unlike_decoded(decoded)
        if got is not None:
            raise ValueError(
                "MixtureLikelihood: decoded: expected floats [B, K, C + 1, H, W] with K and C of "
                f"1 or more, got {got}"
            )
        decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
        masks, colours = decoded[:, :, -1:].softmax(dim=1), decoded[:, :, :-1]
        if self.rgb_activation == "sigmoid":
            colours = colours.sigmoid()
        return Mixture((masks * colours).sum(dim=1), masks, colours)


def _unlike_decoded(decoded: object) -> str | None:
    """What it is instead of decoded slots; None if it is such."""
    if not isinstance(decoded, Tensor):
        return type(decoded).__name__
    shaped = decoded.dim() == 5 and decoded.shape[1] >= 1 and decoded.shape[2] >= 2
    if shaped and decoded.is_floating_point():
        return None
    return f"{decoded.dtype} {[*decoded.shape]}"
