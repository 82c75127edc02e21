"""Spatial broadcast decoders, for each way in which positions and borders come in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.nn.networks import BroadcastSpec, SpatialBroadcastDecoder

SPECS = {
    "no padding, added map": BroadcastSpec(2, 3, 0, 0, 5, "elu"),
    "no padding, coordinates": BroadcastSpec(2, 3, 0, 0, 5, "relu", 1, coordinates=True),
    "some padding, coordinates": BroadcastSpec(2, 5, 1, 0, 5, "elu", 1, coordinates=True),
    "same size, coordinates": BroadcastSpec(2, 3, 1, 1, 5, "elu", 3, coordinates=True),
    "same size, wide kernel": BroadcastSpec(2, 5, 2, 2, 5, "elu", 5, coordinates=True),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("size", [(7, 6), (5, 9)])
def test_the_split_first_layer_equals_the_convolution_of_the_broadcast(
    spec: BroadcastSpec, size: tuple[int, int]
) -> None:
    decoder = SpatialBroadcastDecoder(3, spec, (7, 6), gain=None).double()
    slots = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    parameters = (slots, *decoder.parameters())
    found, expected = decoder(slots, size), _plainly(decoder, slots, size)
    assert found.shape == (4, 4, *size)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(found)
    for ours, plain in zip(
        torch.autograd.grad((found * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


def _plainly(decoder: SpatialBroadcastDecoder, slots: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = (side + decoder.spec.margin for side in size)
    x = slots[:, :, None, None].expand(-1, -1, height, width)
    if decoder.spec.coordinates:
        columns = torch.linspace(-1, 1, width).to(x).expand(len(x), 1, height, width)
        rows = torch.linspace(-1, 1, height).to(x)[:, None]
        x = torch.cat((x, columns, rows.expand(len(x), 1, height, width)), 1)
    else:
        x = x + decoder.position(height, width)
    activation = {"elu": F.elu, "relu": F.relu}[decoder.spec.activation]
    for convolution in decoder.convolutions:
        x = activation(convolution(x))
    output: Tensor = decoder.output(x)
    return output
