"""Steps of the operators' suite: a call's seconds, the mean of many, and its memory.

A step's loss stands for its results: the geometric mean of their norms, in which an error of any
of them shows. It is NaN where a native or Triton kernel fails the check against float64.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emorl.bench.graph_replays import Replays, cache_bytes, calls_of
from emorl.bench.ops.cases import Work
from emorl.bench.ops.forms import check, function_of
from emorl.bench.ops.operators import OPERATORS, Inputs, Results, call
from emorl.bench.turns import WARM_UP
from emorl.bench.workers import TimedStep, Timing
from emorl.memory import keep_memory

LEAST_SECONDS = 0.05  # of a timing on the CPU
Calls = Mapping[str, Callable[[Inputs], Results]]


class Seen(NamedTuple):
    """What results are taken down by, and the bytes that a call moves at least."""

    loss: float
    moved: int


def steps_of(work: Work, form: str, device: str, parts: Sequence[str]) -> dict[str, TimedStep]:
    """The steps of an operator in one of its forms, by part."""
    function = function_of(form, work.operator, work.case)
    inputs = _inputs(work.case, work.dtype, device)
    calls = {part: partial(call, function, part=part) for part in parts}
    return timed(calls, inputs, partial(_seen, work, form, inputs))


@lru_cache(maxsize=1)  # making them takes longer than timing
def _inputs(case: Any, dtype: torch.dtype, device: str) -> Inputs:
    inputs: Inputs = case.inputs(dtype, device)
    return inputs


def _seen(work: Work, form: str, inputs: Inputs, part: str, results: Results) -> Seen:
    """Results are checked first where a kernel of ours made them."""
    moved = OPERATORS[work.operator].bytes_moved(inputs, *results)
    if form in ("native", "triton"):
        try:
            check(results, work.operator, work.case, inputs, part)
        except AssertionError as error:
            print(f"{work}, {part}, {form}: {error}", file=sys.stderr, flush=True)
            return Seen(math.nan, moved)
    return Seen(loss_of(results), moved)


def loss_of(results: Results) -> float:
    """The geometric mean of the results' norms."""
    norms = [torch.linalg.vector_norm(x.double()) for x in (results.output, *results.gradients)]
    return float(torch.stack(norms).log().mean().exp())


def timed(
    calls: Calls, inputs: Inputs, look: Callable[[str, Results], Seen]
) -> dict[str, TimedStep]:
    """Steps of calls that have run once, so that libraries are loaded and code is compiled.

    The memory that took is given back, and from then on kept, as in training: without it large
    results would cost the kernel's page faults above all.

    Args:
        calls: by part.
        inputs: of all of them.
        look: at a part's results.
    """
    seen = {part: look(part, work(inputs)) for part, work in calls.items()}
    if next(iter(inputs.values())).is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return {part: _OnGpu(work, inputs, seen[part]) for part, work in calls.items()}
    _give_memory_back()
    keep_memory()
    return {
        part: partial(_on_cpu, partial(work, inputs), seen[part].loss)
        for part, work in calls.items()
    }


def _give_memory_back() -> None:
    """Return what glibc keeps of freed memory, or it would hide what steps need."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _on_cpu(work: Callable[[], object], loss: float) -> Timing:
    """The mean of as many calls as take `LEAST_SECONDS`."""
    calls, begin = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begin) < LEAST_SECONDS:
        work()
        calls += 1
    return Timing(seconds / calls, loss)


class _OnGpu:
    """A call at a time while the step warms up, for its peak of memory; then replays of many.

    Args:
        work: to be timed.
        inputs: of the first call; the others have copies, which together fill the cache.
        seen: of the results.
    """

    def __init__(self, work: Callable[[Inputs], object], inputs: Inputs, seen: Seen) -> None:
        self._work, self._inputs, self._seen = work, inputs, seen
        self._warm_ups = 0
        self._replays: Replays | None = None

    def __call__(self) -> Timing:
        if self._warm_ups < WARM_UP:
            self._warm_ups += 1
            begin = time.perf_counter()
            self._work(self._inputs)
            torch.cuda.synchronize()
            return Timing(time.perf_counter() - begin, self._seen.loss)
        if self._replays is None:
            self._replays = _replays_of(self._work, self._inputs, self._seen.moved)
        self._replays.round()
        return Timing(self._replays.seconds[-1], self._seen.loss)


def _replays_of(work: Callable[[Inputs], object], first: Inputs, moved: int) -> Replays:
    """Calls that move so many bytes each, on as many copies of their inputs as fill the cache."""
    copies = calls_of(moved, cache_bytes()) - 1
    return Replays([partial(work, x) for x in (first, *(copy_of(first) for _ in range(copies)))])


def copy_of(inputs: Inputs) -> Inputs:
    """The same numbers in the same form elsewhere in memory: neighbouring views stay neighbours."""
    storages = {(old := x.untyped_storage()).data_ptr(): old.clone() for x in inputs.values()}

    def copied(x: Tensor) -> Tensor:
        storage = storages[x.untyped_storage().data_ptr()]
        view = torch.empty(0, dtype=x.dtype, device=x.device)
        view.set_(storage, x.storage_offset(), x.shape, x.stride())
        return view.requires_grad_(x.requires_grad)

    return {name: copied(x) for name, x in inputs.items()}
