"""The decoders that configurations know by name.

Legend: M slots of a batch (batch x slots), D slot width, H W image.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from emorl.nn.arguments import Size, require
from emorl.nn.initialisation import init_xavier
from emorl.nn.networks import (
    Activation,
    BroadcastSpec,
    PositionMap,
    SpatialBroadcastDecoder,
    channels_last,
    convolve,
    rectified,
)
from emorl.ops import Backend

DecoderKind = Literal["iodine", "small", "big"]
BROADCAST_DECODERS: dict[DecoderKind, BroadcastSpec] = {
    "iodine": BroadcastSpec(
        layers=4, kernel=3, padding=0, final_padding=0, channels=64, activation="elu"
    ),
    "small": BroadcastSpec(
        layers=3, kernel=5, padding=1, final_padding=1, channels=32, activation="relu"
    ),
}


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
        convolution_backend: of the last 5x5 convolution.

    Raises:
        ValueError: if an argument is not possible.
    """

    SCALE = 16

    def __init__(
        self,
        dim: int,
        channels: int,
        image_size: tuple[int, int],
        *,
        gain: float,
        position_gain: float = 1.0,
        convolution_backend: Backend = "auto",
    ) -> None:
        owner = type(self).__name__
        require(owner, int, 1, dim=dim, channels=channels)
        require(owner, Size, 1, image_size=image_size)
        require(owner, float, 0, gain=gain)
        require(owner, float, position_gain=position_gain)
        require(owner, Backend, convolution_backend=convolution_backend)
        super().__init__()
        self.convolution_backend = convolution_backend
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

    def forward(self, slots: Tensor, size: tuple[int, int], *shared: Tensor) -> Tensor:
        """Decode slots; as `SpatialBroadcastDecoder.forward`.

        Raises:
            ValueError: if H or W is no multiple of 16.
        """
        (position,) = shared or self.shared(size)
        hidden = slots[:, :, None, None] + position
        hidden = channels_last(hidden)
        *doubling, last = self.convolutions
        for layer in doubling:
            hidden = rectified(layer, hidden, nn.ConvTranspose2d)
        hidden = convolve(last, hidden, "relu", self.convolution_backend)
        output: Tensor = self.output(hidden)
        return output

    def shared(self, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """The position map, [D, H / 16, W / 16]; as `SpatialBroadcastDecoder.shared`.

        Raises:
            ValueError: if H or W is no multiple of 16.
        """
        return (self.position(*self._grid(size)),)


def make_decoder(
    kind: DecoderKind,
    dim: int,
    image_size: tuple[int, int],
    *,
    channels: int | None = None,
    activation: Activation | None = None,
    gain: float,
    position_gain: float = 1.0,
    backend: Backend = "auto",
    convolution_backend: Backend = "auto",
) -> SpatialBroadcastDecoder | DeconvolutionDecoder:
    """The decoder of that name; `channels` and `activation` override the published ones.

    Raises:
        ValueError: if an argument is not possible.
    """
    require("make_decoder", DecoderKind, kind=kind)
    require("make_decoder", Activation | None, activation=activation)
    require("make_decoder", int | None, 1, channels=channels)
    if kind == "big":
        if activation not in (None, "relu"):
            raise ValueError(f'decoder "big": activation must be "relu", got {activation!r}')
        width = 64 if channels is None else channels
        return DeconvolutionDecoder(
            dim,
            width,
            image_size,
            gain=gain,
            position_gain=position_gain,
            convolution_backend=convolution_backend,
        )
    spec = BROADCAST_DECODERS[kind]
    return SpatialBroadcastDecoder(
        dim,
        spec._replace(
            channels=spec.channels if channels is None else channels,
            activation=activation or spec.activation,
        ),
        image_size,
        gain=gain,
        position_gain=position_gain,
        backend=backend,
        convolution_backend=convolution_backend,
    )
