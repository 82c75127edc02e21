"""Native kernels on odd sizes at unaligned addresses, in every dtype, against float64."""

from __future__ import annotations

import pytest
import torch
from odd_cases import OPERATORS, OddCase, odd_cases
from op_testing import DEVICE, unwritten_outputs_are_nan  # noqa: F401

from emorl.ops import backends

MISSING = {name: backends(DEVICE)[name]["native"] for name in OPERATORS.values()}


@pytest.mark.parametrize("case", odd_cases(), ids=str)
def test_native_puts_everything_in_its_place(case: OddCase) -> None:
    """Half of the digits agree: what is missing or elsewhere is wrong by more, rounding by less."""
    if reason := MISSING[OPERATORS[type(case.sizes)]]:
        pytest.skip(reason)
    inputs = case.inputs()
    wide = {n: x.detach().double().requires_grad_(x.requires_grad) for n, x in inputs.items()}
    actual = case.results(inputs, "native")
    for name, truth in case.results(wide, "reference").items():
        assert actual[name].shape == truth.shape
        error = (actual[name].double() - truth).abs().max().item()
        allowed = torch.finfo(case.dtype).eps ** 0.5 * truth.abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
