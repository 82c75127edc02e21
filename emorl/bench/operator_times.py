"""The timed implementations of the operators, their accuracy check, and copies of their inputs.

python -m emorl.bench.operator_times --device cuda     one call of each native form, for a profiler
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emorl.bench.accuracy import assert_as_accurate_as_plain
from emorl.bench.graph_replays import Replays, cache_bytes, calls_of
from emorl.bench.operators import BOTH, OPERATORS, Function, Inputs, Results, call
from emorl.ops import backends

Form = Literal["native", "triton", "plain", "compiled"]
ROUNDS = 20  # of a copy; replays on a GPU


class Timed(NamedTuple):
    """An operator on a case, timed in every form."""

    operator: str
    case: Any
    dtype: torch.dtype
    part: str

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.operator} {self.case} {dtype} {self.part}"


def timed(device: str) -> list[Timed]:
    """Every operator, case, dtype and part that is timed on a device."""
    narrow = [torch.bfloat16, torch.float16] if device == "cuda" else []
    return [
        Timed(name, case, dtype, part)
        for name, operator in OPERATORS.items()
        for case in (operator.batch_32 if device == "cuda" else operator.cases)
        for dtype in (torch.float32, *narrow)
        for part in operator.parts
    ]


def obstacle(form: Form, operator: str, device: str) -> str | None:
    """Why a form cannot run on a device, if it cannot."""
    return backends(device)[OPERATORS[operator].kernels].get(form)


def function_of(form: Form, operator: str, case: Any) -> Function:
    """An operator in one of its forms, on inputs of the case."""
    op = OPERATORS[operator]
    if form == "plain":
        return lambda inputs: op.plain(case, inputs)
    if form == "compiled":  # anew for each case, or the second one would get dynamic shapes
        torch._dynamo.reset()
        compiled = torch.compile(op.plain, fullgraph=True, dynamic=False)
        return lambda inputs: compiled(case, inputs)
    return lambda inputs: op.fused(case, inputs, form)


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


def copy_of(inputs: Inputs) -> Inputs:
    """The same numbers in the same form elsewhere in memory: neighbouring views stay neighbours."""
    storages = {(old := x.untyped_storage()).data_ptr(): old.clone() for x in inputs.values()}

    def copied(x: Tensor) -> Tensor:
        storage = storages[x.untyped_storage().data_ptr()]
        view = torch.empty(0, dtype=x.dtype, device=x.device)
        view.set_(storage, x.storage_offset(), x.shape, x.stride())
        return view.requires_grad_(x.requires_grad)

    return {name: copied(x) for name, x in inputs.items()}


def replays_of(work: Callable[[Inputs], object], first: Inputs, moved: int) -> Replays:
    """Calls that move so many bytes each, on as many copies of their inputs as fill the cache."""
    copies = calls_of(moved, cache_bytes()) - 1
    return Replays([partial(work, x) for x in (first, *(copy_of(first) for _ in range(copies)))])


def copy_bandwidth(device: str) -> float:
    """Bytes per second that a large copy reads and writes together."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    if device == "cuda":
        replays = Replays([lambda: target.copy_(source)] * 4)
        for _ in range(ROUNDS):
            replays.round()
        times = replays.seconds
    else:
        times = [_seconds(lambda: target.copy_(source)) for _ in range(ROUNDS)]
    return 2 * source.nbytes / float(np.median(times))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Run every native operator once, forward and backward, on the cases of its device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    device = parser.parse_args().device
    for name, operator in OPERATORS.items():
        for case in operator.batch_32 if device == "cuda" else operator.cases[-1:]:
            call(function_of("native", name, case), case.inputs(torch.float32, device), BOTH)


if __name__ == "__main__":
    main()
