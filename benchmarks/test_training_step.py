"""Time and memory of training steps and inferences: the cases of `emorl bench --suite step`.

`make bench-step` runs them all and writes JSON; `-k "clevr6 and step"`, `-k MONet`, ... choose
some. Each case runs in a process of its own. pytest-benchmark times a request to that process; its
own clock, which leaves out the request, is in `extra_info`, with the peak memory: on the CPU what
the process took above its start, on a GPU `max_memory_allocated`. On a GPU the batches are
EfficientMORL's official ones, 32, and a step is also timed with other precisions, compiled and as a
CUDA graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from emorl.bench.records import quantiles
from emorl.bench.step import plan
from emorl.bench.step.cases import MODELS
from emorl.bench.suite import Options
from emorl.bench.turns import LEAST, WARM_UP, Group
from emorl.bench.workers import Worker

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 20 if DEVICE == "cuda" else LEAST
OPTIONS = Options(
    models=tuple(MODELS),
    sizes=plan.SIZES,
    batch=32 if DEVICE == "cuda" else plan.BATCH,
    device=DEVICE,
    threads=torch.get_num_threads(),
    official=None,
    budget=0.0,  # none: the cases are chosen by -k
    memory=0,
)
CASES = [(group, variant) for group in plan.groups(OPTIONS) for variant in group.variants]


def name_of(case: tuple[Group, str]) -> str:
    """Without spaces."""
    group, variant = case
    return f"{group.name} {variant}".replace(", ", "-").replace(" ", "_")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_training_step(benchmark: Any, case: tuple[Group, str]) -> None:
    group, name = case
    variant, (part,) = group.variants[name], group.parts
    seconds: list[float] = []

    def timed() -> None:
        seconds.append(worker.step(part)[0])

    with Worker(variant.build, OPTIONS.threads, variant.keep) as worker:
        warm_up = [worker.step(part)[1] for _ in range(WARM_UP if DEVICE == "cuda" else 1)]
        assert np.isfinite(warm_up).all()
        benchmark.group = group.name
        benchmark.pedantic(timed, rounds=ROUNDS)
        times = quantiles(seconds)
        benchmark.extra_info.update(
            group.entry,
            variant=name,
            seconds=times,
            images_per_second=group.entry["batch"] / times["median"],
            peak_bytes=worker.peak(),
        )
