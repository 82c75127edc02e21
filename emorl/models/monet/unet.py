"""MONet's attention network: a U-Net whose bottleneck sees the whole image.

Legend: B batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.nn.networks import channels_last, convolve, rectified
from emorl.ops import Backend


class UNet(nn.Module):
    """One logit per pixel, from convolutions at every scale (Burgess et al. 2019).

    A block is a 3x3 convolution without bias, instance norm with learned scale and shift, and
    ReLU. On the way down each block but the last is followed by nearest halving; the last one's
    output passes an MLP over all its pixels, all layers with ReLU, and is joined with itself. On
    the way up each block joins what comes from below, nearest doubled, with the block of its size
    on the way down, and has the channels of the next shallower one. A 1x1 convolution gives the
    logit.

    Sides that cannot be halved evenly are rounded up, and the way up ends at the same sizes.

    Args:
        in_channels: of the image.
        channels: of the blocks on the way down, the full size first.
        image_size: (height, width), which the MLP fixes.
        hidden: width of the MLP's two hidden layers.
        convolution_backend: of the 3x3 convolutions.

    Raises:
        ValueError: if the last block has a single pixel, which its norm would make constant.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        image_size: tuple[int, int],
        hidden: int = 128,
        convolution_backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.down = nn.ModuleList(
            _Block(a, b, convolution_backend) for a, b in pairwise((in_channels, *channels))
        )
        deepest = (channels[-1], *halved(image_size, len(channels) - 1))
        if deepest[1:] == (1, 1):
            raise ValueError(
                f"UNet: expected fewer than {len(channels)} blocks (unet_channels), which halve "
                f"{image_size[0]}x{image_size[1]} pixels to a single one"
            )
        features = deepest[0] * deepest[1] * deepest[2]
        self.bottleneck = nn.Sequential(
            nn.Flatten(),
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, features),
            nn.ReLU(),
            nn.Unflatten(1, deepest),
        )
        shallower = (channels[0], *channels[:-1])
        self.up = nn.ModuleList(
            _Block(2 * own, out, convolution_backend)
            for own, out in zip(channels, shallower, strict=True)
        )
        self.output = nn.Conv2d(channels[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of images.

        Args:
            images: [B, C, H, W], of the size that the network was made for.

        Returns:
            [B, 1, H, W].
        """
        skips = [self.down[0](images)]
        for block in self.down[1:]:
            skips.append(block(skips[-1][..., ::2, ::2]))
        hidden = self.bottleneck(skips[-1])
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            hidden = F.interpolate(hidden, size=skip.shape[-2:])
            hidden = block(torch.cat((hidden, skip), dim=1))
        logits: Tensor = self.output(hidden)
        return logits


class _Block(nn.Module):
    """3x3 convolution, instance norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, convolution_backend: Backend) -> None:
        super().__init__()
        self.convolution_backend = convolution_backend
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        # One group per channel is instance norm, whose own module loses the channels-last order.
        self.norm = nn.GroupNorm(out_channels, out_channels)

    def forward(self, images: Tensor) -> Tensor:
        images = channels_last(images)
        convolved = convolve(self.convolution, images, "none", self.convolution_backend)
        return rectified(self.norm, convolved, nn.GroupNorm)


def halved(size: tuple[int, int], times: int) -> tuple[int, int]:
    """A size after halving its sides so many times, each time rounded up."""
    return (-(-size[0] // 2**times), -(-size[1] // 2**times))
