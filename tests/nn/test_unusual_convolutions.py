"""Options that the fused convolution does not have are not left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from emorl.nn import make_decoder
from emorl.nn.decoders import DeconvolutionDecoder
from emorl.nn.networks import convolve
from emorl.ops import Backend, backends

OPTIONS = [
    {"dilation": 2},
    {"padding": (1, 0)},
    {"stride": (1, 2)},
    {"padding": "same"},
    {"padding": 1, "padding_mode": "circular"},
    {"groups": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_layer_with_other_options_is_called(options: dict[str, Any]) -> None:
    layer, x = nn.Conv2d(16, 16, 3, **options), torch.randn(1, 16, 9, 8)
    torch.testing.assert_close(convolve(layer, x, "relu", "auto"), layer(x).relu())


@pytest.mark.parametrize("activation", ["elu", "none"])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("options", [*OPTIONS[:3], *OPTIONS[5:], {"padding": 1}], ids=str)
def test_more_padding_is_that_of_the_images(
    options: dict[str, Any], kind: type[nn.Conv2d | nn.ConvTranspose2d], activation: Any
) -> None:
    layer, x = kind(16, 16, 3, **options), torch.randn(1, 16, 9, 8)
    expected = layer(F.pad(x, (1, 1, 1, 1)))
    expected = F.elu(expected) if activation == "elu" else expected
    torch.testing.assert_close(convolve(layer, x, activation, "auto", padding=1), expected)


@pytest.mark.parametrize("options", OPTIONS[3:5], ids=str)
def test_the_first_layer_of_a_decoder_too(options: dict[str, Any]) -> None:
    decoder = make_decoder("small", 3, (6, 5), channels=4, gain=1.0)
    first = nn.Conv2d(3, 4, 5, **options)
    decoder.convolutions[0] = first
    slots, grid = torch.randn(2, 3), (6 + decoder.spec.margin, 5 + decoder.spec.margin)
    hidden = first(slots[:, :, None, None] + decoder.position(*grid)).relu()
    for layer in decoder.convolutions[1:]:
        hidden = layer(hidden).relu()
    size = (6, 5)
    torch.testing.assert_close(decoder(slots, size), decoder.output(hidden))


TRANSPOSED = [
    {"stride": 2},
    {"stride": 2, "output_padding": 1},
    {"padding": (1, 0)},
    {"padding": 3},
    {"dilation": 2},
    {"groups": 2},
]


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_a_transposed_layer_with_other_options_is_called(options: dict[str, Any]) -> None:
    layer, x = nn.ConvTranspose2d(16, 16, 3, **options), torch.randn(1, 16, 9, 8)
    torch.testing.assert_close(convolve(layer, x, "relu", "auto"), layer(x).relu())


def test_a_transposed_layer_of_two_sides_is_called() -> None:
    layer, x = nn.ConvTranspose2d(16, 16, (3, 5)), torch.randn(1, 16, 9, 8)
    torch.testing.assert_close(convolve(layer, x, "relu", "auto"), layer(x).relu())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_transposed_layer_is_a_convolution_turned_round(
    kernel: int, padding: int, bias: bool
) -> None:
    layer = nn.ConvTranspose2d(32, 64, kernel, padding=padding, bias=bias).double()
    x = torch.randn(2, 32, 20, 19, dtype=torch.float64, requires_grad=True)
    found, expected = convolve(layer, x, "relu", "auto"), layer(x).relu()
    torch.testing.assert_close(found, expected)
    if backends()["convolution"]["native"] is None:
        assert "emorl" in found.grad_fn.name()
    weights, leaves = torch.randn_like(found), (x, *layer.parameters())
    for ours, plain in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)


def big_decoder(convolution_backend: Backend = "auto") -> DeconvolutionDecoder:
    return DeconvolutionDecoder(
        3, 32, (16, 16), gain=1.0, convolution_backend=convolution_backend
    ).double()


def hooked(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda _, __, output: 2 * output)


def parametrized(layer: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)


@pytest.mark.parametrize("change", [hooked, parametrized])
@pytest.mark.parametrize("index", range(5))
def test_what_a_layer_of_the_big_decoder_does_besides_is_not_left_out(
    index: int, change: Callable[[nn.Module], None]
) -> None:
    decoder, slots = big_decoder(), torch.randn(2, 3, dtype=torch.float64)
    expected = decoder(slots, (16, 16))
    change(decoder.convolutions[index])
    hidden = slots[:, :, None, None] + decoder.position(1, 1)
    for layer in decoder.convolutions:
        hidden = layer(hidden).relu()
    found = decoder(slots, (16, 16))
    torch.testing.assert_close(found, decoder.output(hidden))
    assert not torch.allclose(found, expected)


def test_plain_convolutions_of_the_big_decoder_can_be_differentiated_twice() -> None:
    decoder = big_decoder("reference")
    slots = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        decoder(slots, (16, 16)).square().sum(), slots, create_graph=True
    )
    gradient.square().sum().backward()
    assert slots.grad is not None
    assert slots.grad.abs().max() > 0
