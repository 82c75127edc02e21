"""The encoder of images.

Legend: B batch, N pixels, H W image.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from emorl.nn.arguments import Size, require
from emorl.nn.features import LinearFeatures
from emorl.nn.initialisation import init_xavier
from emorl.nn.layers import channels_last, convolve, rectified
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

    Raises:
        ValueError: if an argument is not possible.
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        image_size: tuple[int, int],
        *,
        gain: float,
        convolution_backend: Backend = "auto",
        stride: int = 1,
    ) -> None:
        require("ImageEncoder", int, 1, channels=channels, layers=layers, stride=stride)
        require("ImageEncoder", Size, 1, image_size=image_size)
        require("ImageEncoder", float, 0, gain=gain)
        require("ImageEncoder", Backend, convolution_backend=convolution_backend)
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
            Features of N = H * W pixels (with a stride: of `grid`), without their last layer.
        """
        features = channels_last(images)
        for layer in self.convolutions:
            features = convolve(layer, features, "relu", self.convolution_backend)
        features = features + self.position(*features.shape[-2:])
        features = self.norm(features.flatten(2).mT)
        hidden = rectified(self.hidden, features, nn.Linear)
        return LinearFeatures.before(self.output, hidden)
