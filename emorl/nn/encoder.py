"""Image encoder: convolutions, positions and a pixel-wise MLP."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.nn.absorption import LinearFeatures
from emorl.nn.convolution import convolve
from emorl.nn.initialisation import RELEASED_GAIN, init_xavier
from emorl.nn.positions import PositionMap
from emorl.ops import Backend


class ImageEncoder(nn.Module):
    """Features of every pixel (Emami et al. 2021, appendix F; Locatello et al. 2020).

    5x5 convolutions with ReLU, plus projected position ramps, layer norm and a two-layer MLP.

    Args:
        channels: width of every layer.
        layers: number of convolutions.
        image_size: (height, width) usually seen; `grid` is that of its features.
        gain: of the initial weights.
        convolution_backend: of the convolutions.
        stride: of all convolutions but the first.
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        image_size: tuple[int, int],
        *,
        gain: float = RELEASED_GAIN,
        convolution_backend: Backend = "auto",
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.convolution_backend = convolution_backend
        widths, strides = [3] + [channels] * layers, [1] + [stride] * (layers - 1)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, kernel_size=5, padding=2, stride=s)
            for (a, b), s in zip(pairwise(widths), strides, strict=True)
        )
        shrinking = stride ** (layers - 1)
        self.grid = -(-image_size[0] // shrinking), -(-image_size[1] // shrinking)
        self.norm = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        init_xavier(self, gain)
        self.position = PositionMap(channels, self.grid)  # keeps PyTorch's initialisation

    def forward(self, images: Tensor) -> LinearFeatures:
        """Encode images.

        Args:
            images: [B, 3, H, W] in [-1, 1].

        Returns:
            Features of N = H * W pixels (with a stride: of `grid`), whose last layer is left to
            whoever uses them.
        """
        features = images.contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            features = convolve(convolution, features, "relu", self.convolution_backend)
        features = features + self.position(*features.shape[-2:])
        features = self.norm(features.flatten(2).mT)
        hidden = F.relu(self.hidden(features), inplace=True)
        return LinearFeatures(hidden, self.output.weight, self.output.bias)
