"""Timings of the operators; every result is checked against the reference before it is timed.

Run with `pytest benchmarks --benchmark-group-by=param:case,param:part`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.cases import SLOT_ATTENTION_TIMED, SlotAttentionCase
from emorl.ops import backends, slot_attention
from emorl.ops.slot_attention import reference

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def native(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return slot_attention(q, k, v, backend="native")


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference(q, k, v)[0]


FUNCTIONS: dict[str, Function] = {
    "native": native,
    "reference": plain,
    "torch.compile": torch.compile(plain, fullgraph=True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("part", ["forward", "forward-backward"])
@pytest.mark.parametrize("case", SLOT_ATTENTION_TIMED, ids=str)
def test_slot_attention(benchmark, case: SlotAttentionCase, part: str, name: str) -> None:
    reason = backends()["slot_attention"]["native"]
    if name == "native" and reason is not None:
        pytest.skip(reason)
    inputs = {x: value for x, value in case.inputs().items() if x != "logit_bias"}
    leaves = list(inputs.values())

    def step(function: Function) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(part == "forward-backward"):
            updates = function(inputs["q"], inputs["k"], inputs.get("v", inputs["k"]))
        if part == "forward":
            return (updates,)
        return torch.autograd.grad(updates.sum(), leaves)

    for actual, expected in zip(step(FUNCTIONS[name]), step(plain), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)
    benchmark(step, FUNCTIONS[name])
