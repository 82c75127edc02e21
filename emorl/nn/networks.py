"""The networks over pixels: position maps, the image encoder, the decoders of slots.

Keys, values and pixel features are linear in the last hidden layer of the encoder's MLP, so their
matrices can be applied to the few slots instead of the many pixels (Emami et al. 2021 compute
q . W_k f and the mean of W_v f; here (W_k^T q) . f and W_v times the mean of f). Exact in real
numbers; three tensors of pixels and the products that made them disappear, forward and backward,
and one tensor serves the attention as keys and values.

Legend: B batch, K slots, M = B * K, N pixels, H hidden or C channels, D width of slots and queries,
E of values, H W image.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as every

from emorl.nn.arguments import Size, require
from emorl.nn.initialisation import init_xavier
from emorl.ops import Backend, slot_attention, spatial_broadcast
from emorl.ops.convolution import convolution
from emorl.ops.library import cast, full_precision, mapped
from emorl.ops.spatial_broadcast import ACTIVATIONS

Layer = TypeVar("Layer", bound=nn.Module)
Activation = Literal["elu", "relu"]


def is_plain(layer: nn.Module, kind: type[Layer]) -> TypeGuard[Layer]:
    """Whether a layer is one of `kind` whose call computes with its weights and nothing else.

    A layer that is not (an adapter, a quantised one, one with hooks) must be called: what replaces
    the call by the weights' mathematics would leave out what it adds.
    """
    hooks = (
        *(layer._forward_hooks, layer._forward_pre_hooks),
        *(layer._backward_hooks, layer._backward_pre_hooks),
        *(every._global_forward_hooks, every._global_forward_pre_hooks),
        *(every._global_backward_hooks, every._global_backward_pre_hooks),
    )
    own = torch.nn.utils.parametrize.type_before_parametrizations(layer)
    return own is kind and "forward" not in vars(layer) and not any(hooks)


def channels_last(images: Tensor) -> Tensor:
    """Images [B, C, H, W], in memory [B, H, W, C]; also where `torch.vmap` maps them."""
    if mapped():  # which knows no memory formats
        return images.movedim(1, -1).contiguous().movedim(-1, 1)
    return images.contiguous(memory_format=torch.channels_last)


def convolve(
    layer: nn.Module,
    x: Tensor,
    activation: Activation | Literal["none"],
    backend: Backend,
    padding: int = 0,
) -> Tensor:
    """What a convolution gives, activated; by the operator where that has all its options.

    Args:
        layer: the convolution; or a transposed one, which with a stride of 1 is that of its
            weights with the channels exchanged and both sides reversed.
        x: [B, C, H, W].
        activation: "elu", "relu" or "none".
        backend: of the operator.
        padding: zeros around the images, beside those of the layer.

    Returns:
        [B, D, H', W'].
    """
    if is_plain(layer, nn.Conv2d) and _is_square(layer):
        weight, own = layer.weight, int(layer.padding[0])
    elif is_plain(layer, nn.ConvTranspose2d) and _turns(layer):
        weight = layer.weight.flip(2, 3).transpose(0, 1)
        own = layer.kernel_size[0] - 1 - int(layer.padding[0])
    else:
        called = layer(F.pad(x, 4 * (padding,)) if padding else x)
        return called if activation == "none" else ACTIVATIONS[activation](called)
    return convolution(
        x,
        weight,
        layer.bias,
        padding=own + padding,
        stride=layer.stride[0],
        activation=activation,
        backend=backend,
    )


def rectified(layer: nn.Module, x: Tensor, kind: type[nn.Module]) -> Tensor:
    """ReLU of what a layer gives; in place where it is a plain one of `kind`.

    What another one gives may be kept: by a hook, or as the output of a layer within it.
    """
    return F.relu(layer(x), inplace=is_plain(layer, kind))


def _turns(layer: nn.ConvTranspose2d) -> bool:
    """Whether a transposed convolution is a convolution with its weights turned round."""
    height, width = layer.kernel_size
    return (
        _is_square(layer)
        and height == width > int(layer.padding[0])
        and (layer.stride, layer.output_padding) == ((1, 1), (0, 0))
    )


def _is_square(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether padding and stride are numbers for both sides, and nothing else is unusual."""
    return (
        not isinstance(layer.padding, str)
        and len({*layer.padding}) == len({*layer.stride}) == 1
        and (layer.padding_mode, layer.groups, layer.dilation) == ("zeros", 1, (1, 1))
    )


def position_ramps(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Distances to the bottom, top, left and right edge, in [0, 1].

    Args:
        height: rows of the grid.
        width: columns of the grid.
        device: where they are made.

    Returns:
        [4, height, width]: 1 - row, row, column, 1 - column (the released code's order).

    Raises:
        ValueError: if a side is not a whole number of 1 or more.
    """
    require("position_ramps", int, 1, height=height, width=width)
    return _ramps(height, width, device)


def _ramps(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """`position_ramps`, also of a traced size."""
    down, right = (torch.linspace(0, 1, side, device=device) for side in (height, width))
    up, left = (torch.linspace(1, 0, side, device=device) for side in (height, width))
    rows = [ramp[:, None].expand(height, width) for ramp in (up, down)]
    columns = [ramp.expand(height, width) for ramp in (right, left)]
    return torch.stack(rows + columns)


class PositionMap(nn.Module):
    """A learned linear map of the position ramps, one map for the whole batch.

    Args:
        width: channels of the map.
        grid: (height, width) whose ramps are kept; other sizes are made at every call.

    Raises:
        ValueError: if a number is not a whole one of 1 or more.
    """

    ramps: Tensor

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        require("PositionMap", int, 1, width=width)
        require("PositionMap", Size, 1, grid=grid)
        super().__init__()
        self.project = nn.Linear(4, width)
        self.register_buffer("ramps", position_ramps(*grid), persistent=False)

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the map's weights."""
        self.project.weight.mul_(factor)

    def forward(self, height: int, width: int) -> Tensor:
        """The position map of a grid, [C, height, width]."""
        ramps = self.ramps
        if ramps.shape[1:] != (height, width):
            ramps = _ramps(height, width, ramps.device).to(ramps.dtype)
        with full_precision(ramps):
            if not is_plain(self.project, nn.Linear):
                projected: Tensor = self.project(ramps.permute(1, 2, 0))
                return projected.permute(2, 0, 1)
            weighted = torch.einsum("cr,rhw->chw", self.project.weight, ramps)
        bias = self.project.bias
        return weighted if bias is None else weighted + bias[:, None, None]


class CoordinateGrid(nn.Module):
    """x and y of every pixel, from -1 to 1, with nothing to learn.

    Args:
        grid: (height, width) whose coordinates are kept; other sizes are made at every call.
    """

    coordinates: Tensor

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("coordinates", _coordinates(*grid), persistent=False)

    def forward(self, height: int, width: int) -> Tensor:
        """x, then y, of a grid, [2, height, width]."""
        kept = self.coordinates
        if kept.shape[1:] == (height, width):
            return kept
        return _coordinates(height, width, kept.device).to(kept.dtype)


def _coordinates(height: int, width: int, device: torch.device | None = None) -> Tensor:
    sides = (torch.linspace(-1, 1, side, device=device) for side in (height, width))
    y, x = torch.meshgrid(*sides, indexing="ij")
    return torch.stack((x, y))


class LinearFeatures(NamedTuple):
    """Pixel features whose last layer has not been applied: `hidden @ weight.T + bias`.

    Attributes:
        hidden: [B, N, H].
        weight: [C, H].
        bias: [C], or None for zeros.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def before(cls, layer: nn.Module, hidden: Tensor) -> LinearFeatures:
        """What `layer` makes of `hidden` [B, N, H], left undone where it is an `nn.Linear`."""
        if not is_plain(layer, nn.Linear):
            return cls.of(layer(hidden))
        return cls(hidden, layer.weight, layer.bias)

    @classmethod
    def of(cls, features: Tensor) -> LinearFeatures:
        """Features [B, N, C] as they are."""
        identity = torch.eye(features.shape[2], dtype=features.dtype, device=features.device)
        return cls(features, identity, None)

    def to(self, dtype: torch.dtype) -> LinearFeatures:
        """The same in another dtype."""
        return LinearFeatures(*(x if x is None else x.to(dtype) for x in self))  # type: ignore[arg-type]

    def dense(self) -> Tensor:
        """The features, [B, N, C]."""
        return F.linear(self.hidden, self.weight, self.bias)


class AbsorbedAttention(NamedTuple):
    """Attention over the hidden layer of pixel features, or over the features themselves.

    Attributes:
        hidden: [B, N, H].
        key: from queries to the hidden layer, [D, H].
        key_bias: [D], or None for zeros.
        value: from the hidden layer to values, [E, H].
        value_bias: [E], or None for zeros.
    """

    hidden: Tensor
    key: Tensor
    key_bias: Tensor | None
    value: Tensor
    value_bias: Tensor | None

    @classmethod
    def of(
        cls,
        features: LinearFeatures | Tensor,
        key: Tensor,
        value: Tensor,
        key_bias: Tensor | None = None,
        value_bias: Tensor | None = None,
    ) -> Self:
        """Absorb the projections `key` [D, C] and `value` [E, C] and their biases."""
        if isinstance(features, Tensor):
            return cls(features, key, key_bias, value, value_bias)
        weight, bias = features.weight, features.bias
        if bias is not None:
            key_bias, value_bias = (
                own @ bias if given is None else own @ bias + given
                for own, given in ((key, key_bias), (value, value_bias))
            )
        return cls(features.hidden, key @ weight, key_bias, value @ weight, value_bias)

    @classmethod
    def through(cls, features: LinearFeatures | Tensor, key: nn.Module, value: nn.Module) -> Self:
        """Attention over what layers make of features; they are absorbed where that is exact.

        That is, where both are an `nn.Linear`; else keys and values are made, and lie side by side
        in `hidden`.
        """
        if is_plain(key, nn.Linear) and is_plain(value, nn.Linear):
            return cls.of(features, key.weight, value.weight, key.bias, value.bias)
        dense = features if isinstance(features, Tensor) else features.dense()
        keys, values = key(dense), value(dense)
        both = LinearFeatures.of(torch.cat([keys, values], dim=2))
        widths = (keys.shape[2], values.shape[2])
        return cls.of(both, *both.weight.split(widths))

    def attend(
        self,
        query: Tensor,
        return_attention: bool = False,
        backend: Backend = "auto",
        *,
        eps: float = 1e-8,
        slot_mask: Tensor | None = None,
        heads: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        """What `slot_attention` gives for dense keys and values.

        Args:
            query: scaled, [B, K, D].
            return_attention: whether the attention is wanted.
            backend: of the op.
            eps: added to each attention weight.
            slot_mask: [B, K], bool, True where the slot takes part.
            heads: of the queries, keys and values; with several, one softmax runs over all slots
                and heads of a pixel.

        Returns:
            Updates, [B, K, E]; the attention, [B, K, N] (with several heads [B, K, heads, N]), or
            None.
        """
        queries, bias = self._absorb(query, heads)
        if slot_mask is not None and heads > 1:
            slot_mask = slot_mask.repeat_interleave(heads, dim=1)
        options: dict[str, Any] = {"logit_bias": bias, "slot_mask": slot_mask, "eps": eps}
        options |= {"return_attention": return_attention, "backend": backend}
        result: Any = slot_attention(queries, self.hidden, self.hidden, **options)
        mean, attention = result if return_attention else (result, None)
        if heads == 1:
            updates = F.linear(mean, self.value, self.value_bias)
        else:
            by_head = mean.unflatten(1, (-1, heads))
            values = self.value.unflatten(0, (heads, -1))
            updates = torch.einsum("bkhc,hec->bkhe", by_head, values).flatten(2)
            updates = updates if self.value_bias is None else updates + self.value_bias
            attention = None if attention is None else attention.unflatten(1, (-1, heads))
        if slot_mask is not None and self.value_bias is not None:
            updates = updates.masked_fill(~slot_mask[:, ::heads, None], 0)
        return updates, attention

    def mean(self) -> Tensor:
        """The mean of all values, [B, E]."""
        return F.linear(self.hidden.mean(dim=1), self.value, self.value_bias)

    def logits(self, query: Tensor, heads: int = 1) -> Tensor:
        """What the softmax is taken of, [B, K * heads, N]."""
        queries, bias = self._absorb(query, heads)
        logits = queries @ self.hidden.mT
        return logits if bias is None else logits + bias[..., None]

    def _absorb(self, query: Tensor, heads: int) -> tuple[Tensor, Tensor | None]:
        """Queries of the hidden layer, [B, K * heads, H], and what their logits have on top."""
        if heads == 1:
            return query @ self.key, None if self.key_bias is None else query @ self.key_bias
        by_head = query.unflatten(2, (heads, -1))
        keys = self.key.unflatten(0, (heads, -1))
        queries = torch.einsum("bkhd,hdc->bkhc", by_head, keys).flatten(1, 2)
        if self.key_bias is None:
            return queries, None
        return queries, (by_head * self.key_bias.view(heads, -1)).sum(3).flatten(1)


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
            and _is_square(first)
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
