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

from emorl.nn.initialisation import RELEASED_GAIN, init_xavier
from emorl.nn.positions import CoordinateGrid, PositionMap
from emorl.ops import Backend, spatial_broadcast
from emorl.ops.convolution import convolve

DecoderKind = Literal["iodine", "small", "big"]
Activation = Literal["elu", "relu"]
ACTIVATIONS: dict[Activation, Callable[..., Tensor]] = {"elu": F.elu, "relu": F.relu}


class BroadcastSpec(NamedTuple):
    """A spatial broadcast decoder: hidden convolutions, then one to 4 channels.

    Attributes:
        layers: number of hidden convolutions.
        kernel: their side.
        padding: their zero padding.
        final_padding: the last convolution's.
        channels: hidden channels.
        activation: between convolutions.
        final_kernel: side of the last convolution.
        coordinates: concatenate x and y in [-1, 1] to the slot, instead of adding a learned map.
    """

    layers: int
    kernel: int
    padding: int
    final_padding: int
    channels: int
    activation: Activation
    final_kernel: int = 3
    coordinates: bool = False

    @property
    def margin(self) -> int:
        """By how much the broadcast grid exceeds the image, in pixels."""
        hidden = self.layers * (self.kernel - 1 - 2 * self.padding)
        return hidden + self.final_kernel - 1 - 2 * self.final_padding


BROADCAST_DECODERS: dict[DecoderKind, BroadcastSpec] = {
    "iodine": BroadcastSpec(4, 3, 0, 0, 64, "elu"),
    "small": BroadcastSpec(3, 5, 1, 1, 32, "relu"),
}


class SpatialBroadcastDecoder(nn.Module):
    """Decode each slot by convolutions over its broadcast copy plus positions (Watters 2019).

    EfficientMORL's (Emami et al. 2021, appendix F) are in `BROADCAST_DECODERS`; other models have
    specifications of their own.

    The first convolution acts on a sum of something constant in space (the slot) and something
    that all slots share (the positions). By linearity each part is convolved alone: positions
    once, slots on the smallest grid that has every border class. This is exact, and leaves out a
    large share of the multiplications.

    Args:
        dim: D, width of a slot.
        spec: layers, kernels, paddings, width, activation, and how positions come in.
        image_size: (height, width) usually decoded.
        gain: of the initial weights (Xavier normal); None keeps PyTorch's initialisation.
        position_gain: of the learned map's initial weights, on top of that.
        backend: of the spatial broadcast op.
        convolution_backend: of the convolutions between the first and the last.
    """

    def __init__(
        self,
        dim: int,
        spec: BroadcastSpec,
        image_size: tuple[int, int],
        *,
        gain: float | None = RELEASED_GAIN,
        position_gain: float = 1.0,
        backend: Backend = "auto",
        convolution_backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.dim, self.spec = dim, spec
        self.backend, self.convolution_backend = backend, convolution_backend
        self.activation = ACTIVATIONS[spec.activation]
        widths = [dim + 2 * spec.coordinates] + [spec.channels] * spec.layers
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, spec.kernel, padding=spec.padding) for a, b in pairwise(widths)
        )
        self.output = nn.Conv2d(spec.channels, 4, spec.final_kernel, padding=spec.final_padding)
        grid = (image_size[0] + spec.margin, image_size[1] + spec.margin)
        self.position = CoordinateGrid(grid) if spec.coordinates else PositionMap(dim, grid)
        if gain is not None:
            init_xavier(self, gain)
        if isinstance(self.position, PositionMap):
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
        for layer in self.convolutions[1:]:
            hidden = convolve(layer, hidden, self.spec.activation, self.convolution_backend)
        output: Tensor = self.output(hidden)
        return output

    def _first(self, slots: Tensor, size: tuple[int, int]) -> Tensor:
        """The first layer's output, [M, C, ...] channels last, without ever making its input."""
        first, spec = self.convolutions[0], self.spec
        assert isinstance(first, nn.Conv2d)
        grid = (size[0] + spec.margin, size[1] + spec.margin)
        positions = self.position(*grid)[None].contiguous(memory_format=torch.channels_last)
        of_slot, of_position = first.weight[:, : self.dim], first.weight[:, -positions.shape[1] :]
        position = F.conv2d(positions, of_position, first.bias, 1, spec.padding)[0]
        constant = slots[:, :, None, None].expand(-1, -1, spec.kernel, spec.kernel)
        slot = F.conv2d(constant, of_slot, padding=spec.padding)
        if spec.padding > 1:  # more border classes than the operator knows
            return self.activation(_every_pixel(slot, position) + position)
        return spatial_broadcast(
            slot if spec.padding else slot[:, :, 0, 0],
            position,
            activation=spec.activation,
            backend=self.backend,
        )


def _every_pixel(classes: Tensor, like: Tensor) -> Tensor:
    """Border classes [M, C, 2p + 1, 2p + 1], the middle one repeated to the size of `like`."""
    middle = classes.shape[-1] // 2
    rows, columns = (
        torch.minimum(i, (i - n + 2 * middle + 1).clamp(min=middle))
        for n, i in ((n, torch.arange(n, device=like.device)) for n in like.shape[-2:])
    )
    return classes[:, :, rows[:, None], columns]


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
        *,
        gain: float = RELEASED_GAIN,
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
    *,
    channels: int | None = None,
    activation: Activation | None = None,
    gain: float = RELEASED_GAIN,
    position_gain: float = 1.0,
    backend: Backend = "auto",
    convolution_backend: Backend = "auto",
) -> SpatialBroadcastDecoder | DeconvolutionDecoder:
    """The decoder of that name; `channels` and `activation` override the published ones.

    Raises:
        ValueError: if the name, the activation or the image size is impossible.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"decoder: activation must be one of {[*ACTIVATIONS]}, got {activation!r}")
    if channels is not None and channels < 1:
        raise ValueError(f"decoder: channels must be positive, got {channels}")
    if kind == "big":
        if activation not in (None, "relu"):
            raise ValueError(f'decoder "big": activation must be "relu", got {activation!r}')
        return DeconvolutionDecoder(
            dim, channels or 64, image_size, gain=gain, position_gain=position_gain
        )
    if kind not in BROADCAST_DECODERS:
        raise ValueError(f"decoder must be one of {[*get_args(DecoderKind)]}, got {kind!r}")
    spec = BROADCAST_DECODERS[kind]
    return SpatialBroadcastDecoder(
        dim,
        spec._replace(channels=channels or spec.channels, activation=activation or spec.activation),
        image_size,
        gain=gain,
        position_gain=position_gain,
        backend=backend,
        convolution_backend=convolution_backend,
    )
