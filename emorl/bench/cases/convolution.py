"""The inputs on which convolutions are tested and timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emorl.bench.cases.normals import normals
from emorl.ops.spatial_broadcast import Activation


@dataclass(frozen=True)
class ConvolutionCase:
    """Sizes of x [B,C,H,W] and weight [D,C,k,k]; with a bias or without."""

    batch: int
    channels: int
    out_channels: int
    height: int
    width: int
    kernel: int
    padding: int
    activation: Activation = "elu"
    biased: bool = True
    channels_last: bool = True

    def __str__(self) -> str:
        sizes = f"B{self.batch}C{self.channels}D{self.out_channels}H{self.height}W{self.width}"
        form = f"k{self.kernel}p{self.padding}-{self.activation}{'-bias' if self.biased else ''}"
        return f"{sizes}-{form}-{'last' if self.channels_last else 'first'}"

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Tensor]:
        """Leaves that require gradients: x, weight and bias, if there is one."""
        normal = normals(torch.float64, "meta" if device == "meta" else "cpu")
        x = normal(self.batch, self.channels, self.height, self.width)
        weight = normal(self.out_channels, self.channels, self.kernel, self.kernel)
        leaves = {
            "x": x.contiguous(memory_format=torch.channels_last) if self.channels_last else x,
            "weight": weight / (self.channels**0.5 * self.kernel),
            **({"bias": normal(self.out_channels)} if self.biased else {}),
        }
        return {name: x.to(device, dtype).requires_grad_() for name, x in leaves.items()}

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `convolution`."""
        return {"padding": self.padding, "activation": self.activation}

    def products(self) -> tuple[int, ...]:
        """How many products are summed in the output and in the gradient of each input."""
        area, rim = self.kernel**2, 2 * self.padding - self.kernel + 1
        pixels = self.batch * (self.height + rim) * (self.width + rim)
        return self.channels * area, self.out_channels * area, *[pixels] * (1 + self.biased)


# A hidden layer of CLEVR6's encoder, and of each decoder, of CLEVR6 and of Tetrominoes. All with
# ELU, though 5x5 layers have ReLU: what rounding moves past 0 has another gradient there, so that
# results could not be checked.
CONVOLUTION_TIMED = [
    ConvolutionCase(4, 64, 64, 96, 96, kernel=5, padding=2),
    ConvolutionCase(28, 64, 64, 104, 104, kernel=3, padding=0),
    ConvolutionCase(128, 32, 32, 39, 39, kernel=5, padding=1),
]

CONVOLUTION_BATCH_32 = [
    ConvolutionCase(224, 64, 64, 104, 104, kernel=3, padding=0),
    ConvolutionCase(32, 64, 64, 96, 96, kernel=5, padding=2),
    ConvolutionCase(128, 32, 32, 39, 39, kernel=5, padding=1),
]
