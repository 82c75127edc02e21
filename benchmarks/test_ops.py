"""Timings of the operators; every result is checked against the reference before it is timed.

`make bench` runs them all and writes JSON; `-k slot_attention`, `-k native`, ... choose some. Each
record has the median and, in `extra_info`, 20 and 80 % quantiles, GB/s and the fraction of a copy's
bandwidth. The bytes counted are those that must move: each input once, each result once. On the CPU
memory is kept, as in training, or large results would cost the kernel's page faults above all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.operators import OPERATORS
from emorl.memory import keep_memory
from emorl.ops import backends

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16] if DEVICE == "cuda" else [torch.float32]
TOLERANCES = {
    torch.float32: {"rtol": 1e-3, "atol": 1e-4},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
}
TIMED = [(name, case) for name, operator in OPERATORS.items() for case in operator.cases]

Step = Callable[[], list[Tensor]]


def make_step(function: Callable[[], Tensor], inputs: dict[str, Tensor], part: str) -> Step:
    """The work that is timed; returns the output, or the gradients as well."""
    leaves = [x for x in inputs.values() if x.requires_grad]
    with torch.no_grad():
        grad_output = torch.ones_like(function())

    def step() -> list[Tensor]:
        if part == "forward":
            with torch.no_grad():
                results = [function()]
        else:
            output = function()
            results = [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return results

    return step


def variant(name: str, operator: str, case: Any, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    op = OPERATORS[operator]
    if name == "plain":
        return lambda: op.plain(case, inputs)
    if name == "compiled":  # anew for each case, or the second one would get dynamic shapes
        torch._dynamo.reset()
        compiled = torch.compile(op.plain, fullgraph=True, dynamic=False)
        return lambda: compiled(case, inputs)
    if reason := backends(DEVICE)[operator][name]:
        pytest.skip(reason)
    return lambda: op.fused(case, inputs, name)


@pytest.fixture(scope="session", autouse=True)
def kept_memory() -> None:
    keep_memory()


@pytest.fixture(scope="session")
def copy_bandwidth() -> float:
    """Bytes per second that a large copy reads and writes together."""
    source = torch.ones(2**26, device=DEVICE)
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        target.copy_(source)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / float(np.median(times))


@pytest.mark.parametrize("name", ["native", "triton", "plain", "compiled"])
@pytest.mark.parametrize("part", ["forward", "forward-backward"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("operator", "case"), TIMED, ids=str)
def test_operator(
    benchmark: Any,
    copy_bandwidth: float,
    operator: str,
    case: Any,
    dtype: torch.dtype,
    part: str,
    name: str,
) -> None:
    inputs = case.inputs(dtype, DEVICE)
    step = make_step(variant(name, operator, case, inputs), inputs, part)
    plain = make_step(variant("plain", operator, case, inputs), inputs, part)
    results = step()
    for actual, expected in zip(results, plain(), strict=True):
        scale = float(expected.abs().max().clamp(min=1))
        torch.testing.assert_close(actual / scale, expected / scale, **TOLERANCES[dtype])
    moved = sum(x.nbytes for x in inputs.values()) + sum(x.nbytes for x in results)
    benchmark.group = f"{operator} {case} {str(dtype).removeprefix('torch.')} {part}"
    benchmark(step)
    times = np.array(benchmark.stats.stats.data)
    rate = moved / float(np.median(times))
    benchmark.extra_info.update(
        variant=name,
        p20=float(np.quantile(times, 0.2)),
        p80=float(np.quantile(times, 0.8)),
        bytes=moved,
        gigabytes_per_second=rate / 1e9,
        fraction_of_copy_bandwidth=rate / copy_bandwidth,
    )
