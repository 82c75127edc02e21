"""The spatial broadcast decoder of slots.

Legend: B batch, K slots, M = B * K, C hidden channels, D width of slots, H W image.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.nn.arguments import Size, require
from emorl.nn.initialisation import init_xavier
from emorl.nn.layers import Activation, channels_last, convolve, is_plain, is_square
from emorl.nn.positions import CoordinateGrid, PositionMap
from emorl.ops import Backend, spatial_broadcast
from emorl.ops.library import cast, full_precision
from emorl.ops.spatial_broadcast import ACTIVATIONS


class BroadcastSpec(NamedTuple):
    """A spatial broadcast decoder: hidden convolutions, then the last one.

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

    def require(self, image_size: tuple[int, int]) -> None:
        """Raise a ValueError unless an image of this size can be decoded so."""
        own = self._asdict()
        for names, kind, least in (
            (("layers", "kernel", "channels", "final_kernel"), int, 1),
            (("padding", "final_padding"), int, 0),
            (("activation",), Activation, None),
            (("coordinates",), bool, None),
        ):
            require("BroadcastSpec", kind, least, **{name: own[name] for name in names})
        first = (
            max(1, self.kernel - 2 * self.padding) - self.margin
        )  # grid that the first layer takes
        last = 1 - (self.final_kernel - 1 - 2 * self.final_padding)  # that it gives the last one
        require("SpatialBroadcastDecoder", Size, max(1, first, last), image_size=image_size)


class SpatialBroadcastDecoder(nn.Module):
    """Decode each slot by convolutions over its broadcast copy plus positions (Watters 2019).

    EfficientMORL's (Emami et al. 2021, appendix F) are in `emorl.nn.decoders`; other models have
    specifications of their own.

    The first convolution acts on a sum of something constant in space (the slot) and something
    that all slots share (the positions). By linearity each part is convolved alone: positions
    once, for as many calls as there are (`shared`), and of a slot one product of matrices gives the
    value of every border class. This is exact, and leaves out a large share of the multiplications.

    Args:
        dim: D, width of a slot.
        spec: layers, kernels, paddings, width, activation, and how positions come in.
        image_size: (height, width) usually decoded.
        out_channels: of the result: colours and a mask logit, or features and one.
        gain: of the initial weights (Xavier normal); None keeps PyTorch's initialisation.
        position_gain: of the learned map's initial weights, on top of that.
        backend: of the spatial broadcast op.
        convolution_backend: of the convolutions between the first and the last.

    Example:
        >>> spec = BroadcastSpec(
        ...     layers=3, kernel=5, padding=2, final_padding=1, channels=32, activation="relu"
        ... )
        >>> decoder = SpatialBroadcastDecoder(16, spec, (24, 32))
        >>> slots = torch.randn(2, 5, 16)  # [B, K, D]
        >>> decoder(slots.flatten(0, 1)).unflatten(0, (2, 5)).shape
        torch.Size([2, 5, 4, 24, 32])

    Raises:
        ValueError: if an argument is not possible.
    """

    def __init__(
        self,
        dim: int,
        spec: BroadcastSpec,
        image_size: tuple[int, int],
        *,
        out_channels: int = 4,
        gain: float | None = None,
        position_gain: float = 1.0,
        backend: Backend = "auto",
        convolution_backend: Backend = "auto",
    ) -> None:
        owner = type(self).__name__
        require(owner, int, 1, dim=dim, out_channels=out_channels)
        require(owner, BroadcastSpec, spec=spec)
        spec.require(image_size)
        require(owner, float | None, 0, gain=gain)
        require(owner, float, position_gain=position_gain)
        require(owner, Backend, backend=backend, convolution_backend=convolution_backend)
        super().__init__()
        self.dim, self.spec, self.image_size = dim, spec, image_size
        self.backend, self.convolution_backend = backend, convolution_backend
        self.activation = ACTIVATIONS[spec.activation]
        widths = [dim + 2 * spec.coordinates] + [spec.channels] * spec.layers
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, spec.kernel, padding=spec.padding) for a, b in pairwise(widths)
        )
        self.output = nn.Conv2d(
            spec.channels, out_channels, spec.final_kernel, padding=spec.final_padding
        )
        grid = (image_size[0] + spec.margin, image_size[1] + spec.margin)
        self.position = CoordinateGrid(grid) if spec.coordinates else PositionMap(dim, grid)
        if gain is not None:
            init_xavier(self, gain)
        if isinstance(self.position, PositionMap):
            self.position.scale(position_gain)

    def forward(
        self, slots: Tensor, size: tuple[int, int] | None = None, *shared: Tensor
    ) -> Tensor:
        """Decode slots.

        Args:
            slots: [M, D].
            size: (H, W) of the image; None for the constructor's.
            shared: what `shared` gives for this size, if one computation is to serve many calls.

        Returns:
            Such as RGB before its sigmoid and mask logits, [M, out_channels, H, W].
        """
        hidden = self._first(slots, *(shared or self.shared(size or self.image_size)))
        for layer in self.convolutions[1:]:
            hidden = convolve(layer, hidden, self.spec.activation, self.convolution_backend)
        output: Tensor = self.output(hidden)
        return output

    def shared(self, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """What the first layer needs and no slot changes.

        Args:
            size: (H, W) of the image.

        Returns:
            The convolution of the positions, with the bias, [C, ...] channels last, and what each
            number of a slot is multiplied by, for each border class, [D, C, 2p + 1, 2p + 1] with
            padding p (fewer along a side of the grid that is shorter than the kernel). Where the
            layer has to be called: the positions alone, [1, P, ...].
        """
        first, spec = self.convolutions[0], self.spec
        grid = (size[0] + spec.margin, size[1] + spec.margin)
        positions = channels_last(self.position(*grid)[None])
        if not self._splits(first):
            return (positions,)
        weight = first.weight  # read once: a parametrization may give others the next time
        of_slot, of_position = weight[:, : self.dim], weight[:, -positions.shape[1] :]
        position = F.conv2d(positions, of_position, first.bias, 1, spec.padding)[0]
        # Autocast narrows it; gradients of many calls are to be added in the weights' dtype.
        return cast(position, weight.dtype), _tap_sums(of_slot, spec.padding, grid)

    def _splits(self, first: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether the first layer's weights, split, do what its call does."""
        return (
            is_plain(first, nn.Conv2d)
            and is_square(first)
            and (first.padding[0], first.stride[0]) == (self.spec.padding, 1)
        )

    def _first(self, slots: Tensor, *shared: Tensor) -> Tensor:
        """The first layer's output, [M, C, ...] channels last, without ever making its input."""
        first, spec = self.convolutions[0], self.spec
        if not self._splits(first):
            return self.activation(first(self._broadcast(slots, *shared)))
        position, taps = shared
        slot = (slots @ taps.flatten(1)).unflatten(1, taps.shape[1:])
        position = cast(position, slot.dtype)
        if taps.shape[2:] not in ((1, 1), (3, 3)):  # border classes that the operator does not take
            return self.activation(_every_pixel(slot, position) + position)
        return spatial_broadcast(
            slot[:, :, 0, 0] if slot.shape[2:] == (1, 1) else slot,
            position,
            activation=spec.activation,
            backend=self.backend,
        )

    def _broadcast(self, slots: Tensor, positions: Tensor) -> Tensor:
        """The first layer's input, [M, ...]: slots at every position, plus or beside these."""
        if not self.spec.coordinates:
            return slots[:, :, None, None] + positions
        copies = slots[:, :, None, None].expand(-1, -1, *positions.shape[2:])
        return torch.cat([copies, positions.expand(len(slots), -1, -1, -1)], dim=1)


def _tap_sums(weight: Tensor, padding: int, grid: tuple[int, int]) -> Tensor:
    """Sums of the taps within the grid, by border class: [C, D, k, k] to [D, C, 2p + 1, 2p + 1].

    That is the convolution of a constant image of k x k pixels. Along a side shorter than the
    kernel both borders may cut the same pixel's taps, and each pixel has a class of its own.
    """
    kernel = weight.shape[-1]
    rows, columns = (
        F.pad(weight.new_ones(min(side, kernel)), (padding, padding)).unfold(0, kernel, 1)
        for side in grid
    )
    with full_precision(weight):
        return torch.einsum("cdab,ia,jb->dcij", weight, rows, columns)


def shared_by_slots(decoder: nn.Module, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """What a decoder computes once for many calls, its arguments after the size.

    Args:
        decoder: of slots; one without a method `shared`, such as an adapter, shares nothing.
        size: (H, W) of the image.
    """
    shared = getattr(decoder, "shared", None)
    return shared(size) if shared else ()


def _every_pixel(classes: Tensor, like: Tensor) -> Tensor:
    """Border classes [M, C, ., .], the middle one of each side repeated to the size of `like`."""
    rows, columns = (
        torch.minimum(i, (i - len(i) + n).clamp(min=n // 2))
        for n, i in (
            (n, torch.arange(side, device=like.device))
            for n, side in zip(classes.shape[-2:], like.shape[-2:], strict=True)
        )
    )
    return classes[:, :, rows[:, None], columns]
