"""Timings of the operators; a kernel's results are checked before it is timed.

`make bench` runs them all and writes JSON; `-k slot_attention`, `-k native`, ... choose some. Each
record has the median and, in `extra_info`, 20 and 80 % quantiles, GB/s and the fraction of a copy's
bandwidth in the same run; `Operator.bytes_moved` says which bytes count. On the CPU memory is kept,
as in training, or large results would cost the kernel's page faults above all. On a GPU
pytest-benchmark times a round of many calls; `extra_info` has a call's time by CUDA events
(`emorl.bench.graph_replays`), at batch 32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, get_args

import pytest
import torch

from emorl.bench import operator_times
from emorl.bench.operator_times import ROUNDS, Form, Timed
from emorl.bench.operators import OPERATORS, Inputs, call
from emorl.bench.records import quantiles
from emorl.memory import keep_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session", autouse=True)
def kept_memory() -> None:
    keep_memory()


@pytest.fixture(scope="session")
def copy_bandwidth() -> float:
    return operator_times.copy_bandwidth(DEVICE)


@lru_cache(maxsize=1)  # making them takes longer than timing
def inputs_of(case: Any, dtype: torch.dtype) -> Inputs:
    inputs: Inputs = case.inputs(dtype, DEVICE)
    return inputs


def measure(
    benchmark: Any, work: Callable[[Inputs], object], inputs: Inputs, moved: int
) -> list[float]:
    """Seconds of a call that moves so many bytes, one number a round."""
    if DEVICE == "cpu":
        benchmark(lambda: work(inputs))
        return benchmark.stats.stats.data
    replays = operator_times.replays_of(work, inputs, moved)
    benchmark.pedantic(replays.round, rounds=ROUNDS, warmup_rounds=2)
    return replays.seconds[-ROUNDS:]


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize(
    "timed", operator_times.timed(DEVICE), ids=lambda timed: str(timed).replace(" ", "-")
)
def test_operator(benchmark: Any, copy_bandwidth: float, timed: Timed, form: Form) -> None:
    operator, case, dtype, part = timed
    if reason := operator_times.obstacle(form, operator, DEVICE):
        pytest.skip(reason)
    inputs = inputs_of(case, dtype)
    function = operator_times.function_of(form, operator, case)
    results = call(function, inputs, part)
    if form in ("native", "triton"):
        operator_times.check(results, operator, case, inputs, part)
    moved = OPERATORS[operator].bytes_moved(inputs, *results)
    benchmark.group = str(timed)
    times = quantiles(measure(benchmark, lambda x: call(function, x, part), inputs, moved))
    rate = moved / times["median"]
    benchmark.extra_info.update(
        variant=form,
        seconds=times["median"],
        p20=times["p20"],
        p80=times["p80"],
        bytes=moved,
        gigabytes_per_second=rate / 1e9,
        fraction_of_copy_bandwidth=rate / copy_bandwidth,
    )
