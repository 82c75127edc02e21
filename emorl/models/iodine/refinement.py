"""IODINE's refinement network: from image and vector inputs to an update of the posterior.

Legend: M slots of a batch (batch x slots), D slot width, C channels, H W image.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.models.iodine.initialisation import init_fan_in
from emorl.nn.initialisation import init_xavier
from emorl.nn.networks import convolve
from emorl.nn.posterior import Gaussian
from emorl.ops import Backend
from emorl.ops.library import full_precision

Pooling = Literal["flatten", "mean"]
State = tuple[Tensor, Tensor]
_POOL = 4


class ImageRefinementSpec(NamedTuple):
    """Architecture of the refinement network.

    Attributes:
        layers: number of convolutions, each followed by ELU; zero padding keeps ceil(side / stride)
            pixels, one more after the image than before it where the number is odd.
        kernel: their side.
        stride: of each.
        channels: of each.
        pooling: "flatten" averages 4x4 pixels and concatenates the rest, "mean" averages all.
        code_layers: linear layers after that, with ELU between them.
        code_width: their width.
        merge_width: of a linear layer over image code and vectors, with ELU before and after it;
            None for none.
        lstm_width: of the LSTM; None for no recurrence.
    """

    layers: int
    kernel: int
    stride: int
    channels: int
    pooling: Pooling
    code_layers: int
    code_width: int
    merge_width: int | None
    lstm_width: int | None

    def pooled(self, image_size: tuple[int, int]) -> int:
        """Numbers per image that are left after pooling."""
        if self.pooling == "mean":
            return self.channels
        shrink = self.stride**self.layers
        return self.channels * math.prod(-(-side // shrink) // _POOL for side in image_size)


class ImageRefinement(nn.Module):
    """Convolutions over a slot's image inputs, an LSTM, an additive update (Greff et al. 2019).

    Args:
        dim: D, width of a slot.
        channels: of the images.
        width: of the vectors.
        spec: the architecture.
        image_size: (height, width) of the images; with pooling "flatten" the only possible one.
        gain: of the initial weights (Xavier normal), the LSTM's apart; None for DeepMind's, normal
            with variance 1 / fan-in, truncated at two deviations.
        convolution_backend: of the convolutions.
    """

    def __init__(
        self,
        dim: int,
        channels: int,
        width: int,
        spec: ImageRefinementSpec,
        image_size: tuple[int, int],
        gain: float | None,
        convolution_backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.spec, self.convolution_backend = spec, convolution_backend
        channel_widths = [channels] + [spec.channels] * spec.layers
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, spec.kernel, spec.stride) for a, b in pairwise(channel_widths)
        )
        code_widths = [spec.pooled(image_size)] + [spec.code_width] * spec.code_layers
        self.code = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(code_widths))
        width += spec.code_width
        self.merge = nn.Linear(width, spec.merge_width) if spec.merge_width else None
        width = spec.merge_width or width
        self.cell = nn.LSTMCell(width, spec.lstm_width) if spec.lstm_width else None
        width = spec.lstm_width or width
        self.mean = nn.Linear(width, dim)
        self.raw = nn.Linear(width, dim)
        if gain is None:
            init_fan_in(self)
        else:
            init_xavier(self, gain)

    def encode(self, images: Tensor) -> Tensor:
        """Encode the image inputs of each slot.

        Args:
            images: [M, C, H, W].

        Returns:
            [M, code width].
        """
        hidden = images.contiguous(memory_format=torch.channels_last)
        for layer in self.convolutions:
            hidden = self._convolve(layer, hidden)
        if self.spec.pooling == "mean":
            code = hidden.mean(dim=(2, 3))
        else:
            code = F.avg_pool2d(hidden, _POOL).flatten(1)
        for n, layer in enumerate(self.code):
            code = layer(F.elu(code) if n else code)
        return code

    def forward(
        self, code: Tensor, vectors: Tensor, state: State | None
    ) -> tuple[Gaussian, State | None]:
        """One refinement step.

        Args:
            code: from `encode`, [M, code width].
            vectors: [M, V].
            state: of the LSTM; None at first.

        Returns:
            The update to add to the posterior, and the next state.
        """
        with full_precision(vectors):
            code = code.to(vectors.dtype)
            if self.merge is None:
                hidden = torch.cat([code, vectors], dim=1)
            else:
                hidden = F.elu(self.merge(torch.cat([F.elu(code), vectors], dim=1)))
            if self.cell is not None:
                state = self.cell(hidden, state)
                hidden = state[0]
            return Gaussian(self.mean(hidden), self.raw(hidden)), state

    def _convolve(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A convolution, activated, of images padded as TensorFlow's "SAME" does."""
        (top, bottom), (left, right) = (
            _padding(side, self.spec.kernel, self.spec.stride) for side in x.shape[2:]
        )
        if top == bottom == left == right:
            return convolve(layer, x, "elu", self.convolution_backend, padding=top)
        padded = F.pad(x, (left, right, top, bottom))
        return convolve(layer, padded, "elu", self.convolution_backend)


def _padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after `side` pixels, so that ceil(side / stride) are left."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2
