"""Native kernels on odd sizes at unaligned addresses, in every dtype, against float64."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from odd_cases import OPERATORS, OddCase, odd_cases
from op_testing import DEVICE, unwritten_outputs_are_nan  # noqa: F401

from emorl.ops import backends

ROOT = Path(__file__).resolve().parents[2]
MISSING = {name: backends(DEVICE)[name]["native"] for name in OPERATORS.values()}


@pytest.mark.parametrize("case", odd_cases(), ids=str)
def test_native_puts_everything_in_its_place(case: OddCase) -> None:
    """Half of the digits agree: what is missing or elsewhere is wrong by more, rounding by less."""
    inputs = case.inputs()
    if reason := MISSING[case.operator] or case.beyond(inputs):
        pytest.skip(reason)
    wide = {n: x.detach().double().requires_grad_(x.requires_grad) for n, x in inputs.items()}
    actual = case.results(inputs, "native")
    for name, truth in case.results(wide, "reference").items():
        assert actual[name].shape == truth.shape
        largest = truth.nan_to_num().abs().max().item() if truth.numel() else 0.0
        allowed = torch.finfo(case.dtype).eps ** 0.5 * largest
        torch.testing.assert_close(
            actual[name].double(),
            truth,
            rtol=0,
            atol=allowed,
            equal_nan=True,  # updates without pixels
            msg=partial("{}: {}".format, name),
        )


def test_every_operator_with_cuda_kernels_has_odd_cases() -> None:
    with_kernels = {path.stem for path in ROOT.glob("csrc/cuda/*.cu")}
    assert {case.operator for case in odd_cases()} == with_kernels
