"""Time and memory of a whole training step, and of an inference, of the official configurations.

`make bench-step` runs them all and writes JSON; `-k tetrominoes`, `-k step`, `-k I3`, ... choose
some. Each case runs in a process of its own. pytest-benchmark times a request to that process; its
own clock, which leaves out the request, is in `extra_info`, with the peak memory: on the CPU what
the process took above its start, on a GPU `max_memory_allocated`. On a GPU the batches are the
official ones, and a step is also timed with other precisions, compiled and as a CUDA graph.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from emorl.bench import step_times
from emorl.bench.records import quantiles
from emorl.bench.step_times import make_step, name_of
from emorl.bench.steps import Case
from emorl.bench.workers import Worker

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 20 if DEVICE == "cuda" else 3


@pytest.mark.parametrize("variant", step_times.variants(DEVICE))
@pytest.mark.parametrize("part", step_times.PARTS)
@pytest.mark.parametrize("case", step_times.timed(DEVICE), ids=name_of)
def test_training_step(benchmark: Any, case: Case, part: str, variant: str) -> None:
    if part == "forward" and variant.endswith("graph"):
        pytest.skip("an inference is not trained")
    seconds: list[float] = []

    def timed() -> None:
        seconds.append(worker.step()[0])

    build = partial(make_step, case, part, variant, DEVICE)
    with Worker(build, torch.get_num_threads()) as worker:
        warm_up = [worker.step()[1] for _ in range(5 if DEVICE == "cuda" else 1)]
        assert np.isfinite(warm_up).all()
        benchmark.group = f"{name_of(case)} {part}"
        benchmark.pedantic(timed, rounds=ROUNDS)
        times = quantiles(seconds)
        benchmark.extra_info.update(
            variant=variant,
            batch=case.batch,
            refinement_steps=case.steps,
            image_size=case.network().image_size,
            seconds=times,
            images_per_second=case.batch / times["median"],
            peak_bytes=worker.peak(),
        )
