"""NaN and infinity in every argument: compiled backends give what the reference gives."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest
import torch
from op_testing import DEVICE, backend_params
from torch import Tensor

from emorl.bench.cases.convolution import ConvolutionCase
from emorl.bench.cases.mixture_nll import MixtureNllCase
from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.bench.cases.spatial_broadcast import SpatialBroadcastCase
from emorl.ops import convolution, mixture_nll, slot_attention, spatial_broadcast

ACTIVATIONS = ("elu", "relu", "none")
Operator = tuple[Callable[..., Tensor], dict[str, Tensor], dict[str, Any]]


def nll(kind: str, options: dict[str, Any]) -> Operator:
    case = MixtureNllCase(2, 3, 5, 7, kind=kind, layout="first")
    return mixture_nll, case.inputs(torch.float64, DEVICE), {"kind": kind, "sigma": 0.3, **options}


def nll_per_slot(kind: str) -> Operator:
    _, inputs, _ = nll(kind, {})
    inputs["sigma"] = torch.linspace(0.1, 0.3, 3, dtype=torch.float64, device=DEVICE)
    return mixture_nll, inputs, {"kind": kind}


def operators() -> dict[str, Operator]:
    """By name; each argument is spoilt in turn."""
    kinds = ("gaussian", "mixture", "mixture_joint")
    attention = SlotAttentionCase(2, 3, 70, 4, 6).inputs(torch.float64, DEVICE)
    found: dict[str, Operator] = {"slot_attention": (slot_attention, attention, {})}
    for kind in kinds:
        found[f"mixture_nll-{kind}"] = nll(kind, {})
        found[f"mixture_nll-{kind}-none"] = nll(kind, {"rgb_activation": "none"})
    for kind in kinds[1:]:
        found[f"mixture_nll-{kind}-sigmas"] = nll_per_slot(kind)
    for name in ACTIVATIONS:
        inputs = SpatialBroadcastCase(3, 4, 5, 6, name, True).inputs(torch.float64, DEVICE)
        found[f"spatial_broadcast-{name}"] = (spatial_broadcast, inputs, {"activation": name})
        case = ConvolutionCase(1, 16, 16, 9, 8, 3, 1, name)
        inputs = case.inputs(torch.float64, DEVICE)
        found[f"convolution-{name}"] = (convolution, inputs, case.options())
    return found


def cases() -> list[Any]:
    """Each operator with each backend; a broadcast in Triton's interpreter takes seconds."""
    found = []
    for name in operators():
        for backend in backend_params(name.partition("-")[0], compiled=True):
            test = f"{name}-{backend.values[0]}"
            slow = test in ("spatial_broadcast-relu-triton", "spatial_broadcast-none-triton")
            marks = [*backend.marks, *([pytest.mark.slow] if slow else [])]
            found.append(pytest.param(name, backend.values[0], marks=marks, id=test))
    return found


def spoilt(inputs: dict[str, Tensor], argument: str, value: float) -> dict[str, Tensor]:
    """One number of an argument replaced, in the second image where there is one."""
    given = {
        name: x.detach().clone(memory_format=torch.preserve_format) for name, x in inputs.items()
    }
    given[argument][(-1, *[0] * (given[argument].dim() - 1))] = value
    return {
        name: x.requires_grad_(inputs[name].requires_grad and name != "image")
        for name, x in given.items()
    }


def results(operator: Operator, given: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    function, _, options = operator
    output = function(**given, **options, backend=backend)
    weights = 1 + torch.arange(output.numel()).view_as(output).cos().to(output) / 2
    leaves = {name: x for name, x in given.items() if x.requires_grad}
    grads = torch.autograd.grad((output * weights).sum(), list(leaves.values()))
    return {"output": output.detach(), **dict(zip(leaves, grads, strict=True))}


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize(("name", "backend"), cases())
def test_results_are_those_of_the_reference(name: str, backend: str, value: float) -> None:
    """Values in all numbers; gradients in where they are finite, and there in all numbers.

    Winograd's transforms spread what is not finite over the tile that it falls into, and ELU's
    gradient is NaN where its argument is, which PyTorch's is not.
    """
    operator = operators()[name]
    spreads = name.startswith("convolution") or (name.endswith("elu") and value != value)
    for argument in operator[1]:
        given = spoilt(operator[1], argument, value)
        expected = results(operator, given, "reference")
        for key, actual in results(operator, given, backend).items():
            truth = expected[key]
            assert not (actual.isfinite() & ~truth.isfinite()).any(), f"{argument}: {key}"
            if name == "convolution-relu" and key != "output":
                continue  # more of the output is NaN, whose gradients are those of positive numbers
            if key != "output":
                truth, actual = (x.where(x.isfinite(), nan) for x in (truth, actual))
            if spreads:
                truth, actual = (x.where(actual.isfinite(), nan) for x in (truth, actual))
            torch.testing.assert_close(
                actual, truth, rtol=1e-9, atol=1e-9, equal_nan=True, msg=f"{argument}: {key}"
            )


@pytest.mark.parametrize("backend", backend_params("mixture_nll"))
@pytest.mark.parametrize("kind", ["gaussian", "mixture", "mixture_joint"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_infinite_image_has_an_infinite_nll(kind: str, dtype: torch.dtype, backend: str) -> None:
    function, inputs, options = nll(kind, {})
    given = {name: x.detach().to(dtype) for name, x in inputs.items()}
    given["image"][1, 0, 0, 0] = inf
    found = function(**given, **options, backend=backend)
    assert found[0].isfinite()
    assert found[1] == inf
