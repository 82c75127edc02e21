"""Decoders: from a slot to its appearance and mask logits.

Legend: M slots of a batch (batch x slots), D slot width, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.nn.initialisation import init_xavier
from emorl.nn.positions import PositionMap
from emorl.ops import Backend, spatial_broadcast

DecoderKind = Literal["iodine", "small", "big"]
Activation = Literal["elu", "relu"]
ACTIVATIONS: dict[Activation, Callable[..., Tensor]] = {"elu": F.elu, "relu": F.relu}


class BroadcastSpec(NamedTuple):
    """A spatial broadcast decoder: hidden convolutions, then a 3x3 convolution to 4 channels."""

    layers: int
    kernel: int
    padding: int
    final_padding: int
    channels: int
    activation: Activation

    @property
    def margin(self) -> int:
        """By how much the broadcast grid exceeds the image, in pixels."""
        hidden = self.layers * (self.kernel - 1 - 2 * self.padding)
        return hidden + 2 - 2 * self.final_padding


BROADCAST_DECODERS: dict[DecoderKind, BroadcastSpec] = {
    "iodine": BroadcastSpec(4, 3, 0, 0, 64, "elu"),
    "small": BroadcastSpec(3, 5, 1, 1, 32, "relu"),
}


class SpatialBroadcastDecoder(nn.Module):
    """Decode each slot by convolutions over its broadcast copy plus positions (Watters 2019).

    "iodine": four 3x3 layers without padding; "small": three 5x5 layers with padding 1; both then
    a 3x3 layer to RGB and mask logit (Emami et al. 2021, appendix F).

    The first convolution acts on a sum of something constant in space (the slot) and something
    that all slots share (the positions). By linearity each part is convolved alone: positions
    once, slots on the smallest grid that has every border class. This is exact, and leaves out a
    large share of the multiplications.

    Args:
        dim: D, width of a slot.
        spec: layers, kernel, padding, width and activation.
        image_size: (height, width) usually decoded.
        gain: of the initial weights.
        position_gain: of the position map's initial weights, on top of `gain`.
        backend: of the spatial broadcast op.
    """

    def __init__(
        self,
        dim: int,
        spec: BroadcastSpec,
        image_size: tuple[int, int],
        gain: float = 0.02,
        position_gain: float = 1.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.spec, self.backend = spec, backend
        self.activation = ACTIVATIONS[spec.activation]
        widths = [dim] + [spec.channels] * spec.layers
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, spec.kernel, padding=spec.padding) for a, b in pairwise(widths)
        )
        self.output = nn.Conv2d(spec.channels, 4, 3, padding=spec.final_padding)
        self.position = PositionMap(dim, (image_size[0] + spec.margin, image_size[1] + spec.margin))
        init_xavier(self, gain)
        self.position.scale(position_gain)

    def forward(self, slots: Tensor, size: tuple[int, int]) -> Tensor:
        """Decode slots.

        Args:
            slots: [M, D].
            size: (H, W) of the image.

        Returns:
            RGB before its sigmoid and mask logits, [M, 4, H, W].
        """
        hidden = self._first(slots, size)
        for convolution in self.convolutions[1:]:
            hidden = self.activation(convolution(hidden), inplace=True)
        output: Tensor = self.output(hidden)
        return output

    def _first(self, slots: Tensor, size: tuple[int, int]) -> Tensor:
        """The first layer's output, [M, C, ...] channels last, without ever making its input."""
        first, spec = self.convolutions[0], self.spec
        assert isinstance(first, nn.Conv2d)
        grid = (size[0] + spec.margin, size[1] + spec.margin)
        positions = self.position(*grid)[None].contiguous(memory_format=torch.channels_last)
        position = F.conv2d(positions, first.weight, first.bias, 1, spec.padding)
        smallest = spec.kernel if spec.padding == 0 else spec.kernel + 2 * spec.padding - 2
        constant = slots[:, :, None, None].expand(-1, -1, smallest, smallest)
        classes = F.conv2d(constant, first.weight, padding=spec.padding)
        slot = classes if spec.padding else classes[:, :, 0, 0]
        return spatial_broadcast(
            slot, position[0], activation=spec.activation, backend=self.backend
        )


class DeconvolutionDecoder(nn.Module):
    """Slot Attention's decoder ("big"): a small broadcast grid, doubled four times.

    Five 5x5 transposed convolutions with ReLU, the first four with stride 2, then a 3x3 one to
    RGB and mask logit (Locatello et al. 2020; "E-X-S" in Emami et al. 2021).

    Args:
        dim: D, width of a slot.
        channels: of the hidden layers.
        image_size: (height, width) usually decoded, multiples of 16.
        gain: of the initial weights.
        position_gain: of the position map's initial weights, on top of `gain`.
    """

    SCALE = 16

    def __init__(
        self,
        dim: int,
        channels: int,
        image_size: tuple[int, int],
        gain: float = 0.02,
        position_gain: float = 1.0,
    ) -> None:
        super().__init__()
        widths = [dim] + [channels] * 4
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 5, stride=2, padding=2, output_padding=1)
            for a, b in pairwise(widths)
        )
        self.convolutions.append(nn.ConvTranspose2d(channels, channels, 5, padding=2))
        self.output = nn.ConvTranspose2d(channels, 4, 3, padding=1)
        self.position = PositionMap(dim, self._grid(image_size))
        init_xavier(self, gain)
        self.position.scale(position_gain)

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        if min(size) <= 0 or size[0] % self.SCALE or size[1] % self.SCALE:
            raise ValueError(
                f'decoder "big": image height and width must be multiples of {self.SCALE}, '
                f"got {size[0]}x{size[1]}"
            )
        return size[0] // self.SCALE, size[1] // self.SCALE

    def forward(self, slots: Tensor, size: tuple[int, int]) -> Tensor:
        """Decode slots; as `SpatialBroadcastDecoder.forward`.

        Raises:
            ValueError: if H or W is no multiple of 16.
        """
        hidden = slots[:, :, None, None] + self.position(*self._grid(size))
        for convolution in self.convolutions:
            hidden = F.relu(convolution(hidden), inplace=True)
        output: Tensor = self.output(hidden)
        return output


def make_decoder(
    kind: DecoderKind,
    dim: int,
    image_size: tuple[int, int],
    channels: int | None = None,
    activation: Activation | None = None,
    gain: float = 0.02,
    position_gain: float = 1.0,
    backend: Backend = "auto",
) -> SpatialBroadcastDecoder | DeconvolutionDecoder:
    """The decoder of that name; `channels` and `activation` override the published ones.

    Raises:
        ValueError: if the name, the activation or the image size is impossible.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"decoder: activation must be one of {[*ACTIVATIONS]}, got {activation!r}")
    if kind == "big":
        if activation not in (None, "relu"):
            raise ValueError(f'decoder "big": activation must be "relu", got {activation!r}')
        return DeconvolutionDecoder(dim, channels or 64, image_size, gain, position_gain)
    if kind not in BROADCAST_DECODERS:
        raise ValueError(f"decoder must be one of {[*get_args(DecoderKind)]}, got {kind!r}")
    spec = BROADCAST_DECODERS[kind]
    spec = spec._replace(
        channels=channels or spec.channels, activation=activation or spec.activation
    )
    return SpatialBroadcastDecoder(dim, spec, image_size, gain, position_gain, backend)
