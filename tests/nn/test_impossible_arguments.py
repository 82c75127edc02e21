"""What networks over pixels cannot be made with: one line that names it."""

from __future__ import annotations

import re
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from emorl.nn import (
    BroadcastSpec,
    ImageEncoder,
    MixtureLikelihood,
    SpatialBroadcastDecoder,
    make_decoder,
)
from emorl.nn.initial_slots import LearnedSlots, SampledSlots
from emorl.nn.networks import PositionMap, position_ramps

SPEC = BroadcastSpec(layers=2, kernel=3, padding=1, final_padding=1, channels=4, activation="elu")
ENCODER = partial(ImageEncoder, channels=4, layers=2, image_size=(8, 8), gain=1.0)
DECODER = partial(SpatialBroadcastDecoder, dim=4, spec=SPEC, image_size=(8, 8))
MAKE = partial(make_decoder, kind="small", dim=4, image_size=(16, 16), gain=1.0)
BIG = partial(MAKE, kind="big")
WHOLE = "expected a whole number"
BACKENDS = "expected one of auto, native, triton, reference, got gpu"


def spec(**options: Any) -> Any:
    """A decoder of that specification."""
    return partial(DECODER, spec=SPEC._replace(**options))


CASES = [
    *(
        (make, owner, {name: value}, expected)
        for make, owner, names in (
            (ENCODER, "ImageEncoder", ("channels", "layers", "stride")),
            (DECODER, "SpatialBroadcastDecoder", ("dim", "out_channels")),
            (MAKE, "SpatialBroadcastDecoder", ("dim",)),
            (BIG, "DeconvolutionDecoder", ("dim",)),
            (partial(PositionMap, width=3, grid=(4, 4)), "PositionMap", ("width",)),
            (partial(position_ramps, height=4, width=4), "position_ramps", ("height", "width")),
        )
        for name in names
        for value, expected in (
            (0, "expected at least 1, got 0"),
            (-2, "expected at least 1, got -2"),
            (True, f"{WHOLE}, got true"),
            (2.5, f"{WHOLE}, got 2.5"),
            ("8", f"{WHOLE}, got '8'"),
            (None, f"{WHOLE}, got null"),
        )
    ),
    *(
        (make, owner, {name: value}, expected)
        for make, owner, name in (
            (ENCODER, "ImageEncoder", "image_size"),
            (DECODER, "SpatialBroadcastDecoder", "image_size"),
            (BIG, "DeconvolutionDecoder", "image_size"),
            (partial(PositionMap, width=3, grid=(4, 4)), "PositionMap", "grid"),
        )
        for value, expected in (
            (8, "expected [whole number, whole number], got 8"),
            ((0, 8), "expected at least 1, got [0, 8]"),
            ((8, 8, 8), "expected [whole number, whole number], got [8, 8, 8]"),
        )
    ),
    *(
        (spec(**{name: value}), "BroadcastSpec", {}, f"{name}: {expected}")
        for name, value, expected in (
            ("layers", 0, "expected at least 1, got 0"),
            ("kernel", 2.5, f"{WHOLE}, got 2.5"),
            ("padding", -1, "expected at least 0, got -1"),
            ("final_padding", "1", f"{WHOLE}, got '1'"),
            ("channels", True, f"{WHOLE}, got true"),
            ("activation", "gelu", "expected one of elu, relu, got gelu"),
            ("final_kernel", 0, "expected at least 1, got 0"),
            ("coordinates", 1, "expected true or false, got 1"),
        )
    ),
    (
        *(partial(spec(padding=3), image_size=(4, 9)), "SpatialBroadcastDecoder", {}),
        "image_size: expected at least 9, got [4, 9]",
    ),
    (DECODER, "SpatialBroadcastDecoder", {"gain": -1}, "expected at least 0, got -1"),
    (DECODER, "SpatialBroadcastDecoder", {"backend": "gpu"}, BACKENDS),
    (ENCODER, "ImageEncoder", {"gain": float("nan")}, "expected a number, got nan"),
    (ENCODER, "ImageEncoder", {"convolution_backend": "gpu"}, BACKENDS),
    *(
        (partial(MixtureLikelihood, sigma=0.3), "MixtureLikelihood", {name: value}, expected)
        for name, value, expected in (
            ("kind", "x", "expected one of gaussian, mixture, mixture_joint, got x"),
            ("rgb_activation", "relu", "expected one of sigmoid, none, got relu"),
            ("density", "no", "expected true or false, got no"),
            ("backend", "gpu", BACKENDS),
            (
                *("sigma", torch.ones(3, requires_grad=True)),
                "is not trained, expected sigma.detach()",
            ),
        )
    ),
    (
        partial(SampledSlots, 4),
        "SampledSlots",
        {"spread": "x"},
        "expected one of exp, softplus, got x",
    ),
    (SampledSlots, "SampledSlots", {"dim": 0}, "expected at least 1, got 0"),
    (partial(LearnedSlots, dim=4), "LearnedSlots", {"num_slots": 2.5}, f"{WHOLE}, got 2.5"),
    (MAKE, "make_decoder", {"kind": "tiny"}, "expected one of iodine, small, big, got tiny"),
    (
        *(MAKE, "make_decoder", {"activation": "gelu"}),
        "expected one of elu, relu or null, got gelu",
    ),
    (MAKE, "make_decoder", {"channels": 0}, "expected at least 1, got 0"),
    (MAKE, "make_decoder", {"channels": True}, f"{WHOLE} or null, got true"),
]


@pytest.mark.parametrize(("make", "owner", "options", "expected"), CASES)
def test_arguments_that_are_impossible_are_one_line(
    make: Any, owner: str, options: dict[str, Any], expected: str
) -> None:
    name = "".join(f"{name}: " for name in options)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{owner}: {name}{expected}')}$"):
        make(**options)


def test_sizes_that_are_taken_are_those_that_can_be_decoded() -> None:
    taken = []
    for layers, kernel, padding, final in product((1, 3), (1, 3, 5), range(4), range(4)):
        given = SPEC._replace(layers=layers, kernel=kernel, padding=padding, final_padding=final)
        for side in range(1, 9):
            grid = side + given.margin
            plain = [nn.Conv2d(4, 4, kernel, padding=padding)] * layers
            try:
                nn.Sequential(*plain, nn.Conv2d(4, 4, 3, padding=final))(
                    torch.zeros(1, 4, grid, grid)
                )
            except RuntimeError:
                with pytest.raises(ValueError, match="image_size: expected at least"):
                    DECODER(spec=given, image_size=(side, side))
                taken.append(False)
                continue
            decoded = DECODER(spec=given, image_size=(side, side))(torch.zeros(2, 4))
            assert decoded.shape == (2, 4, side, side)
            taken.append(True)
    assert {*taken} == {True, False}


@pytest.mark.parametrize(
    ("decoded", "got"),
    [
        (torch.zeros(2, 4, 8, 8), "torch.float32 [2, 4, 8, 8]"),
        (torch.zeros(2, 3, 4, 8, 8, dtype=torch.int64), "torch.int64 [2, 3, 4, 8, 8]"),
        (torch.zeros(2, 0, 4, 8, 8), "torch.float32 [2, 0, 4, 8, 8]"),
        (torch.zeros(2, 3, 1, 8, 8), "torch.float32 [2, 3, 1, 8, 8]"),
        ([1.0], "list"),
    ],
)
def test_a_mixture_is_of_decoded_slots(decoded: Any, got: str) -> None:
    expected = "floats [B, K, C + 1, H, W] with K and C of 1 or more"
    message = f"MixtureLikelihood: decoded: expected {expected}, got {got}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MixtureLikelihood(sigma=0.3).mixture(decoded)
