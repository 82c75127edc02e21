"""Timings of the operators by pytest-benchmark: the steps of `emorl bench --suite ops`, in JSON.

`make bench` runs them all; `-k slot_attention`, `-k native`, ... choose some. A kernel's results
are checked against float64 before it is timed. pytest-benchmark times rounds of many calls;
`extra_info` has a call's time (median, 20 and 80 % quantiles), and an operator's GB/s and fraction
of a copy's bandwidth in the same run; `Operator.bytes_moved` says which bytes count. On the CPU
memory is kept, as in training. On a GPU calls are replayed (`emorl.bench.graph_replays`), at batch
32.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import pytest
import torch

from emorl.bench.ops import block, peaks
from emorl.bench.ops.block import BLOCKS, Block
from emorl.bench.ops.cases import Work, all_works
from emorl.bench.ops.forms import forms_of, obstacle
from emorl.bench.ops.operators import OPERATORS
from emorl.bench.ops.steps import steps_of
from emorl.bench.passes import PARTS
from emorl.bench.records import quantiles
from emorl.bench.turns import WARM_UP
from emorl.bench.workers import TimedStep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 20  # on a GPU
TIMED = [
    (work, part, form)
    for work in all_works(DEVICE)
    for part in OPERATORS[work.operator].parts
    for form in forms_of(work.operator, DEVICE)
]
MODULES = [(one, part, name) for one in BLOCKS for part in PARTS for name in block.VARIANTS]


def id_of(timed: tuple[Any, str, str]) -> str:
    return "-".join(map(str, timed)).replace(" ", "-")


@pytest.fixture(scope="session")
def copy_bandwidth() -> float:
    return peaks.copy_bandwidth(DEVICE)


def seconds_of(benchmark: Any, step: TimedStep) -> list[float]:
    """Seconds of a call, one number a round."""
    assert isfinite(step().loss), "results that fail their check"
    seconds: list[float] = []

    def timed() -> None:
        seconds.append(step().seconds)

    if DEVICE == "cuda":
        benchmark.pedantic(timed, rounds=ROUNDS, warmup_rounds=WARM_UP)
        return seconds[-ROUNDS:]
    benchmark(timed)
    return seconds


def take_down(benchmark: Any, name: str, variant: str, seconds: list[float]) -> float:
    """Say in the record what was timed, and return the median."""
    times = quantiles(seconds)
    benchmark.group = name
    benchmark.extra_info.update(
        variant=variant, seconds=times["median"], p20=times["p20"], p80=times["p80"]
    )
    return times["median"]


@pytest.mark.parametrize("timed", TIMED, ids=id_of)
def test_operator(benchmark: Any, copy_bandwidth: float, timed: tuple[Work, str, str]) -> None:
    work, part, form = timed
    if reason := obstacle(form, work.operator, DEVICE, work.case):
        pytest.skip(reason)
    step = steps_of(work, form, DEVICE, [part])[part]
    median = take_down(benchmark, f"{work} {part}", form, seconds_of(benchmark, step))
    moved = work.cost(part).bytes
    benchmark.extra_info.update(
        bytes=moved,
        gigabytes_per_second=moved / median / 1e9,
        fraction_of_copy_bandwidth=moved / median / copy_bandwidth,
    )


@pytest.mark.parametrize("timed", MODULES, ids=id_of)
def test_module(benchmark: Any, timed: tuple[Block, str, str]) -> None:
    one, part, variant = timed
    if reason := block.obstacle_of(one, variant, DEVICE):
        pytest.skip(reason)
    step = block.steps_of(one, variant, DEVICE, [part])[part]
    take_down(benchmark, f"{one} {part}", variant, seconds_of(benchmark, step))
