"""Options that the fused convolution does not have are not left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from emorl.nn import make_decoder
from emorl.nn.networks import convolve

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
