"""The forms in which an operator is timed, what stands in their way, and their accuracy check."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any

import torch
from torch import Tensor

from emorl.bench.accuracy import assert_as_accurate_as_plain
from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.bench.ops.operators import OPERATORS, Function, Inputs, Results, call
from emorl.ops import backends
from emorl.ops.library import obstacles
from emorl.ops.slot_attention import WIDEST

FORMS = ("native", "triton", "plain", "sdpa", "compiled")


def forms_of(operator: str, device: str) -> list[str]:
    """The forms of an operator that a device can have; what others are compared with first."""
    op = OPERATORS[operator]
    with_triton = device == "cuda" and "triton" in obstacles[op.kernels]
    lacking = set() if with_triton else {"triton"}
    lacking |= {"sdpa"} - op.rivals.keys()
    return [form for form in FORMS if form not in lacking]


def obstacle(form: str, operator: str, device: str, case: Any = None) -> str | None:
    """Why a form cannot run on a device, or a case of it cannot, if that is so."""
    if form == "compiled":
        return compiler_obstacle(device)
    if form not in ("native", "triton"):
        return None
    is_wide = isinstance(case, SlotAttentionCase) and case.key_width > WIDEST
    if device == "cuda" and is_wide:
        return f"widths of more than {WIDEST} have no kernels on a GPU"
    return backends(device)[OPERATORS[operator].kernels].get(form)


def compiler_obstacle(device: str) -> str | None:
    """Why `torch.compile` cannot run on a device, if it cannot."""
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "torch.compile needs Triton"
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"torch.compile finds no C++ compiler: {compiler}"


def function_of(form: str, operator: str, case: Any) -> Function:
    """An operator in one of its forms, on inputs of the case."""
    op = OPERATORS[operator]
    if form == "plain":
        return lambda inputs: op.plain(case, inputs)
    if form == "sdpa":
        return lambda inputs: op.rivals[form](case, inputs)
    if form == "compiled":  # anew for each case, or the second one would get dynamic shapes
        torch._dynamo.reset()
        compiled = torch.compile(op.plain, fullgraph=True, dynamic=False)
        return lambda inputs: compiled(case, inputs)
    backend: Any = form
    return lambda inputs: op.fused(case, inputs, backend)


def check(results: Results, operator: str, case: Any, inputs: Inputs, part: str) -> None:
    """Assert an error against float64 of at most twice the plain form's, plus rounding.

    Where plain is right by luck, one rounding of the largest number is allowed: its storing. A sum
    of n products may differ as if they were added in a row, where each sum is rounded by itself:
    by sqrt(n) roundings.

    Raises:
        AssertionError: if they are.
    """
    op = OPERATORS[operator]

    def plain(inputs: Inputs) -> Tensor:
        return op.plain(case, inputs)

    wide = {n: x.detach().double().requires_grad_(x.requires_grad) for n, x in inputs.items()}
    truth = call(plain, wide, part).named()
    narrow = call(plain, inputs, part)
    own = {name: x.to(narrow.output.dtype) for name, x in narrow.named().items()}
    products = op.products(case) if op.products else [1] * len(truth)
    roundings = {
        name: count**0.5 * x.abs().max().item() if x.numel() else 0.0
        for (name, x), count in zip(truth.items(), products, strict=False)
    }
    assert_as_accurate_as_plain(results.named(), own, truth, roundings)
