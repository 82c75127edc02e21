"""Inputs of IODINE's refinement network, in the two published forms.

Legend: B batch, K slots, M = B * K, D slot width, C channels of the mixture, H W image.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.models.iodine.likelihood import MixtureKind, log_components
from emorl.nn.networks import CoordinateGrid
from emorl.nn.posterior import Gaussian

Coordinates = Literal["linear", "cosine"]


class AuthorsInputs(nn.Module):
    """The inputs of the EfficientMORL authors' IODINE: 16 image channels, 4D numbers.

    For each slot: image, means, log masks, mask logits, log of the slots' likelihoods normalised
    without masks, pixel log-likelihood (logsumexp over slots and channels), gradients with respect
    to means and log masks, x and y. Layer norms have no parameters. What is normalised, the pixel
    log-likelihood and all gradients, is detached; the rest passes gradients to the decoder.

    Args:
        dim: D, width of a slot.
        likelihood: of the pixels.
        scale: its scale.
        image_size: (height, width) usually seen.
    """

    channels = 16

    def __init__(
        self, dim: int, likelihood: MixtureKind, scale: float, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.likelihood, self.scale = likelihood, scale
        self.width = 4 * dim
        self.coordinates = CoordinateGrid(image_size)

    def forward(
        self, image: Tensor, decoded: Tensor, gradient: Tensor, weight: float | Tensor
    ) -> Tensor:
        """Image inputs of each slot.

        Args:
            image: [B, 3, H, W] in [0, 1].
            decoded: means and mask logits, [B, K, 4, H, W].
            gradient: of the loss with respect to `decoded`, without a graph.
            weight: of an image's NLL in that loss.

        Returns:
            [M, 16, H, W].
        """
        means, logits = decoded[:, :, :3], decoded[:, :, 3:]
        log_masks = logits.log_softmax(dim=1)
        likelihoods = log_components(image, means, self.likelihood, self.scale)
        posterior = likelihoods.sum(dim=2, keepdim=True).log_softmax(dim=1)
        with torch.no_grad():
            weighted = log_masks + likelihoods
            pixel = weighted.logsumexp(dim=(1, 2))[:, None]
            d_masks = -weight * weighted.softmax(dim=1).sum(dim=2, keepdim=True)
        d_means, d_masks = (
            _normalised(x.flatten(0, 1)).view_as(x) for x in (gradient[:, :, :3], d_masks)
        )
        shared = _per_slot(
            decoded.shape[1],
            image,
            _normalised(pixel),
            self.coordinates(*image.shape[2:]).expand(len(image), -1, -1, -1),
        )
        channels = [means, log_masks, logits, posterior, d_means, d_masks, shared]
        return torch.cat(channels, dim=2).flatten(0, 1)

    def vectors(self, posterior: Gaussian, gradient: Gaussian) -> Tensor:
        """Vector inputs: the posterior and its loss gradient, [M, 4D]."""
        return torch.cat([*posterior, *(F.layer_norm(g, g.shape[1:]) for g in gradient)], dim=1)


class DeepMindInputs(nn.Module):
    """The inputs of DeepMind's IODINE: 16 image channels and coordinates, 4D + 1 numbers.

    For each slot: image, means, mask logits, masks, the slots' likelihoods normalised without
    masks, gradients with respect to means and mask logits, pixel log-likelihood, its difference to
    the leave-one-out log-likelihood without the slot (0 for a single slot), a constant 0.5,
    coordinates. Layer norms have a scale and an offset per channel. What is normalised, the
    gradients, the log-likelihood and the difference, is detached; the rest passes gradients to the
    decoder.

    Args:
        dim: D, width of a slot.
        likelihood: of the pixels.
        scale: its scale.
        image_size: (height, width) usually seen.
        coordinates: "linear" (x and y, from -1 to 1), or "cosine" (the 8 products of cosines of up
            to one period).
    """

    def __init__(
        self,
        dim: int,
        likelihood: MixtureKind,
        scale: float,
        image_size: tuple[int, int],
        coordinates: Coordinates,
    ) -> None:
        super().__init__()
        self.likelihood, self.scale = likelihood, scale
        self.cosine = coordinates == "cosine"
        self.channels = 16 + (8 if self.cosine else 2)
        self.width = 4 * dim + 1
        self.coordinates = CoordinateGrid(image_size)
        self.norm_means = _ImageNorm(3)
        self.norm_masks = _ImageNorm(1)
        self.norm_pixel = _ImageNorm(1)
        self.norm_added = _ImageNorm(1)
        self.norm_posterior = nn.LayerNorm(2 * dim)

    def forward(
        self, image: Tensor, decoded: Tensor, gradient: Tensor, weight: float | Tensor
    ) -> Tensor:
        """Image inputs of each slot; as `AuthorsInputs`', [M, channels, H, W]."""
        means, logits = decoded[:, :, :3], decoded[:, :, 3:]
        log_masks = logits.log_softmax(dim=1)
        likelihoods = log_components(image, means, self.likelihood, self.scale)
        of_slot = likelihoods.sum(dim=2, keepdim=True).exp()
        posterior = of_slot / (of_slot.sum(dim=1, keepdim=True) + 1e-6)
        with torch.no_grad():
            pixel, added = _log_likelihoods(likelihoods, log_masks)
        d_means, d_masks, added = (
            norm(x.flatten(0, 1)).view_as(x)
            for norm, x in (
                (self.norm_means, gradient[:, :, :3]),
                (self.norm_masks, gradient[:, :, 3:]),
                (self.norm_added, added),
            )
        )
        shared = _per_slot(decoded.shape[1], image, self.norm_pixel(pixel), *self._constants(image))
        channels = [means, logits, log_masks.exp(), posterior, d_means, d_masks, added, shared]
        return torch.cat(channels, dim=2).flatten(0, 1)

    def vectors(self, posterior: Gaussian, gradient: Gaussian) -> Tensor:
        """Vector inputs: the posterior, its loss gradient and a constant, [M, 4D + 1]."""
        constant = posterior.mean.new_full((len(posterior.mean), 1), 0.5)
        return torch.cat([*posterior, self.norm_posterior(gradient.packed()), constant], dim=1)

    def _constants(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The constant plane and the coordinates of a batch."""
        batch, _, height, width = image.shape
        xy = self.coordinates(height, width)
        if self.cosine:
            counts = torch.arange(3, device=xy.device)[:, None, None, None]
            waves = ((xy + 1) * (torch.pi / 2) * counts).cos()
            xy = (waves[:, None, 0] * waves[None, :, 1]).flatten(0, 1)[1:]
        return image.new_full((batch, 1, height, width), 0.5), xy.expand(batch, -1, -1, -1)


class _ImageNorm(nn.Module):
    """Layer norm over channels and pixels with a scale and an offset per channel.

    `nn.GroupNorm` of one group, whose backward pass on the CPU crashes (PyTorch 2.13) for images
    that need no gradient and have adjacent channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images [M, C, H, W], which need no gradient."""
        return torch.addcmul(self.bias, _normalised(images), self.weight)


def _normalised(images: Tensor) -> Tensor:
    """Each image with mean 0 and variance 1 over channels and pixels."""
    return F.group_norm(images, 1)


def _per_slot(num_slots: int, *images: Tensor) -> Tensor:
    """Images [B, .., H, W] that all slots share, [B, K, channels, H, W]."""
    return torch.cat(images, dim=1)[:, None].expand(-1, num_slots, -1, -1, -1)


def _log_likelihoods(likelihoods: Tensor, log_masks: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood of every pixel, and by how much it exceeds the leave-one-out ones.

    Without a slot, the masks of the others are normalised anew.

    Args:
        likelihoods: log-likelihoods under each slot, [B, K, C, H, W].
        log_masks: [B, K, 1, H, W].

    Returns:
        [B, 1, H, W] and [B, K, 1, H, W].
    """
    weighted = log_masks + likelihoods
    pixel = weighted.logsumexp(dim=1).sum(dim=1, keepdim=True)
    if log_masks.shape[1] == 1:
        return pixel, torch.zeros_like(log_masks)
    others = _logsumexp_of_others(weighted) - _logsumexp_of_others(log_masks)
    return pixel, pixel[:, None] - others.sum(dim=2, keepdim=True)


def _logsumexp_of_others(x: Tensor) -> Tensor:
    """For each of K entries [B, K, ...] the logsumexp of all others, without cancellation."""
    empty = torch.full_like(x[:, :1], -torch.inf)
    before = torch.cat([empty, x[:, :-1].logcumsumexp(dim=1)], dim=1)
    after = torch.cat([empty, x[:, 1:].flip(1).logcumsumexp(dim=1)], dim=1).flip(1)
    return torch.logaddexp(before, after)
