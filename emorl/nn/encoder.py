"""Image encoder: convolutions, positions and a pixel-wise MLP, whose last layer attention absorbs.

Keys, values and the pixel features themselves are linear in the hidden layer before them, so the
matrices can be applied to the few slots instead of the many pixels (Emami et al. 2021 compute
q . W_k f and the mean of W_v f; here (W_k^T q) . f and W_v times the mean of f). Exact in real
numbers; three tensors of pixels and the products that made them disappear, forward and backward,
and one tensor serves the attention as keys and values.

Legend: B batch, K slots, N pixels, H hidden channels, C channels, D width of queries, E of values.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.nn.initialisation import RELEASED_GAIN, init_xavier
from emorl.nn.positions import PositionMap
from emorl.ops import Backend, slot_attention
from emorl.ops.convolution import convolve


class LinearFeatures(NamedTuple):
    """Pixel features whose last layer has not been applied: `hidden @ weight.T + bias`.

    Attributes:
        hidden: [B, N, H].
        weight: [C, H].
        bias: [C].
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor

    def dense(self) -> Tensor:
        """The features, [B, N, C]."""
        return F.linear(self.hidden, self.weight, self.bias)


class AbsorbedAttention(NamedTuple):
    """Attention over the hidden layer of pixel features.

    Attributes:
        hidden: [B, N, H].
        key: from queries to the hidden layer, [D, H].
        key_bias: [D].
        value: from the hidden layer to values, [E, H].
        value_bias: [E].
    """

    hidden: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor

    @classmethod
    def of(cls, features: LinearFeatures, key: Tensor, value: Tensor) -> AbsorbedAttention:
        """Absorb the projections `key` [D, C] and `value` [E, C], which have no biases."""
        weight, bias = features.weight, features.bias
        return cls(features.hidden, key @ weight, key @ bias, value @ weight, value @ bias)

    def attend(
        self, query: Tensor, return_attention: bool = False, backend: Backend = "auto"
    ) -> tuple[Tensor, Tensor | None]:
        """What `slot_attention` gives for dense keys and values.

        Args:
            query: scaled, [B, K, D].
            return_attention: whether the attention is wanted.
            backend: of the op.

        Returns:
            Updates, [B, K, E]; the softmax over slots, [B, K, N], or None.
        """
        arguments = (query @ self.key, self.hidden, self.hidden)
        bias, attention = query @ self.key_bias, None
        if return_attention:
            mean, attention = slot_attention(
                *arguments, logit_bias=bias, return_attention=True, backend=backend
            )
        else:
            mean = slot_attention(*arguments, logit_bias=bias, backend=backend)
        return F.linear(mean, self.value, self.value_bias), attention


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
