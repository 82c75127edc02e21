"""Timings of the operators; a kernel's results are checked before it is timed.

`make bench` runs them all and writes JSON; `-k slot_attention`, `-k native`, ... choose some. Each
record has the median and, in `extra_info`, 20 and 80 % quantiles, GB/s and the fraction of a copy's
bandwidth in the same run; `Operator.bytes_moved` says which bytes count. On the CPU memory is kept,
as in training, or large results would cost the kernel's page faults above all. On a GPU
pytest-benchmark times a round of many calls; `extra_info` has a call's time by CUDA events
(`graph_replays`), at batch 32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from emorl.bench.graph_replays import Replays, cache_bytes, calls_of
from emorl.bench.operators import OPERATORS, Inputs
from emorl.memory import keep_memory
from emorl.ops import backends
from tests.op_testing import assert_as_accurate_as_plain

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
ROUNDS = 20  # replays on a GPU
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if GPU else [torch.float32]
TIMED = [
    (name, case)
    for name, operator in OPERATORS.items()
    for case in (operator.batch_32 if GPU else operator.cases)
]

Function = Callable[[Inputs], Tensor]


class Results(NamedTuple):
    """What a call gives: its output, and where asked for the gradients of the leaves."""

    output: Tensor
    gradients: Sequence[Tensor]

    def named(self) -> dict[str, Tensor]:
        """In float64, by the names that the rule of accuracy knows."""
        gradients = {f"grad_{i}": x.double() for i, x in enumerate(self.gradients)}
        return {"output": self.output.double(), **gradients}


def call(function: Function, inputs: Inputs, part: str) -> Results:
    """The work that is timed."""
    if part == "forward":
        with torch.no_grad():
            return Results(function(inputs), ())
    leaves = [x for x in inputs.values() if x.requires_grad]
    output = function(inputs)
    gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
    return Results(output.detach(), gradients)


def variant(name: str, operator: str, case: Any) -> Function:
    op = OPERATORS[operator]
    if name == "plain":
        return lambda inputs: op.plain(case, inputs)
    if name == "compiled":  # anew for each case, or the second one would get dynamic shapes
        torch._dynamo.reset()
        compiled = torch.compile(op.plain, fullgraph=True, dynamic=False)
        return lambda inputs: compiled(case, inputs)
    if reason := backends(DEVICE)[operator][name]:
        pytest.skip(reason)
    return lambda inputs: op.fused(case, inputs, name)


def check(results: Results, operator: str, case: Any, inputs: Inputs, part: str) -> None:
    """No further from the float64 truth than twice the plain form of the same dtype, and 1 unit."""

    def plain(inputs: Inputs) -> Tensor:
        return OPERATORS[operator].plain(case, inputs)

    wide = {n: x.detach().double().requires_grad_(x.requires_grad) for n, x in inputs.items()}
    truth = call(plain, wide, part).named()
    narrow = call(plain, inputs, part)
    own = {name: x.to(narrow.output.dtype) for name, x in narrow.named().items()}
    # where plain is right by luck, one rounding of the largest number is allowed: its storing
    roundings = {name: x.abs().max().item() if x.numel() else 0.0 for name, x in truth.items()}
    assert_as_accurate_as_plain(results.named(), own, truth, roundings)


@pytest.fixture(scope="session", autouse=True)
def kept_memory() -> None:
    keep_memory()


@pytest.fixture(scope="session")
def copy_bandwidth() -> float:
    """Bytes per second that a large copy reads and writes together."""
    source = torch.ones(2**26, device=DEVICE)
    target = torch.empty_like(source)
    if GPU:
        replays = Replays([lambda: target.copy_(source)] * 4)
        for _ in range(ROUNDS):
            replays.round()
        times = replays.seconds
    else:
        times = [_seconds(lambda: target.copy_(source)) for _ in range(20)]
    return 2 * source.nbytes / float(np.median(times))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@lru_cache(maxsize=1)  # making them takes longer than timing
def inputs_of(case: Any, dtype: torch.dtype) -> Inputs:
    inputs: Inputs = case.inputs(dtype, DEVICE)
    return inputs


def copy_of(inputs: Inputs) -> Inputs:
    """The same numbers in the same form elsewhere in memory: neighbouring views stay neighbours."""
    storages = {(old := x.untyped_storage()).data_ptr(): old.clone() for x in inputs.values()}

    def copied(x: Tensor) -> Tensor:
        storage = storages[x.untyped_storage().data_ptr()]
        view = torch.empty(0, dtype=x.dtype, device=x.device)
        view.set_(storage, x.storage_offset(), x.shape, x.stride())
        return view.requires_grad_(x.requires_grad)

    return {name: copied(x) for name, x in inputs.items()}


def measure(benchmark: Any, work: Callable[[Inputs], Any], first: Inputs, moved: int) -> np.ndarray:
    """Seconds of a call that moves so many bytes, one number a round."""
    if not GPU:
        benchmark(lambda: work(first))
        return np.array(benchmark.stats.stats.data)
    copies = calls_of(moved, cache_bytes()) - 1
    replays = Replays([partial(work, x) for x in (first, *(copy_of(first) for _ in range(copies)))])
    benchmark.pedantic(replays.round, rounds=ROUNDS, warmup_rounds=2)
    return np.array(replays.seconds[-ROUNDS:])


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
    inputs = inputs_of(case, dtype)
    function = variant(name, operator, case)
    results = call(function, inputs, part)
    if name in ("native", "triton"):
        check(results, operator, case, inputs, part)
    moved = OPERATORS[operator].bytes_moved(inputs, *results)
    benchmark.group = f"{operator} {case} {str(dtype).removeprefix('torch.')} {part}"
    times = measure(benchmark, lambda x: call(function, x, part), inputs, moved)
    rate = moved / float(np.median(times))
    benchmark.extra_info.update(
        variant=name,
        seconds=float(np.median(times)),
        p20=float(np.quantile(times, 0.2)),
        p80=float(np.quantile(times, 0.8)),
        bytes=moved,
        gigabytes_per_second=rate / 1e9,
        fraction_of_copy_bandwidth=rate / copy_bandwidth,
    )
