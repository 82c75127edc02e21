"""Tensors without data, and tensors of several devices: the documented shape, or one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_testing import slot_iterations
from slot_iterations_testing import Case
from torch import Tensor

from emorl.bench.cases.convolution import ConvolutionCase
from emorl.bench.cases.mixture_nll import MixtureNllCase
from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.bench.cases.spatial_broadcast import SpatialBroadcastCase
from emorl.ops import (
    convolution,
    mixture_nll,
    mixture_nll_and_gradient,
    slot_attention,
    spatial_broadcast,
)

SLOT_ITERATIONS = Case(2, 5, 4, 3, 6, 7).module().float()


OPERATORS: dict[str, tuple[Callable[..., Any], dict[str, Tensor], dict[str, Any]]] = {
    "slot_attention": (
        slot_attention,
        SlotAttentionCase(2, 3, 5, 4, 6).inputs(),
        {"return_attention": True},
    ),
    "mixture_nll": (mixture_nll, MixtureNllCase(2, 3, 4, 5).inputs(), {"sigma": 0.3}),
    "mixture_nll_and_gradient": (
        mixture_nll_and_gradient,
        {"image": torch.rand(2, 3, 4, 5), "decoded": torch.rand(2, 3, 4, 4, 5)},
        {"sigma": 0.3, "scale": 0.5},
    ),
    "spatial_broadcast": (spatial_broadcast, SpatialBroadcastCase(3, 4, 5, 6).inputs(), {}),
    "convolution": (convolution, ConvolutionCase(1, 32, 32, 16, 17, 3, 1).inputs(), {"padding": 1}),
    "slot_iterations": (
        slot_iterations,
        {"x": torch.rand(2, 5, 4), **dict(SLOT_ITERATIONS.named_parameters())},
        {},
    ),
}


def shapes(results: Any) -> list[torch.Size]:
    return [x.shape for x in (results if isinstance(results, tuple) else (results,))]


@pytest.mark.parametrize("operator", OPERATORS)
def test_meta_tensors_have_the_results_shapes(operator: str) -> None:
    function, inputs, options = OPERATORS[operator]
    empty = {name: x.detach().to("meta") for name, x in inputs.items()}
    found = function(**empty, **options)
    assert shapes(found) == shapes(function(**inputs, **options))
    with pytest.raises(ValueError, match="no native kernels for 'meta' devices exist"):
        function(**empty, **options, backend="native")


@pytest.mark.parametrize(
    ("operator", "argument"),
    [(operator, name) for operator, (_, inputs, _) in OPERATORS.items() for name in inputs],
)
def test_tensors_of_several_devices_are_refused(operator: str, argument: str) -> None:
    function, inputs, options = OPERATORS[operator]
    mixed = {**inputs, argument: inputs[argument].detach().to("meta")}
    name = operator.removesuffix("_and_gradient")
    with pytest.raises(ValueError, match=rf"^{name}: \w+: expected (cpu|meta), got (cpu|meta)$"):
        function(**mixed, **options)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        ((5, 4, 3, 3), (5,), r"expected x \[B,C,H,W\] and weight \[D,C,k,k\], got \[1, 3, 8, 8\]"),
        ((5, 3, 3), (5,), r"expected x \[B,C,H,W\] and weight \[D,C,k,k\]"),
        ((5, 3, 3, 3), (4,), r"bias: expected \[5\], got \[4\]"),
    ],
)
def test_a_convolution_of_other_shapes_is_refused(
    weight: tuple[int, ...], bias: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=f"convolution: {message}"):
        convolution(torch.ones(1, 3, 8, 8), torch.ones(weight), torch.ones(bias))
