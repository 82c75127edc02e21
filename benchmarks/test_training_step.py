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

from emorl.bench.steps import ON_GPU, Case, autocast, set_precision, variant_step
from emorl.bench.workers import Step, Worker, quantiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 20 if DEVICE == "cuda" else 3
BATCHES = {"tetrominoes": 4, "multi_dsprites": 2, "clevr6": 2}  # on the CPU; official: 32
SIDES = {"tetrominoes": 35, "multi_dsprites": 64, "clevr6": 96}  # official
VARIANTS = [*ON_GPU, "tf32 compiled"] if DEVICE == "cuda" else ["float32"]


def batch_of(config: str) -> int:
    return 32 if DEVICE == "cuda" else BATCHES[config]


CASES = [
    *(
        Case(config, batch_of(config), steps, size=side)
        for config, side in SIDES.items()
        for steps in (0, 1, 3)
    ),
    *(Case("clevr6", batch_of("clevr6"), 3, size=side) for side in (64, 128)),
]


def name_of(case: Case) -> str:
    return f"{case.config}-{case.size}-B{case.batch}-I{case.steps}"


def make_step(case: Case, part: str, variant: str) -> Step:
    """What is timed: "forward", an inference, or "step", a training step."""
    model, images = case.build(DEVICE)
    if part == "step":
        return variant_step(model, images, variant)
    set_precision(variant)
    if variant.endswith("compiled"):
        for network in model.children():
            network.compile()

    def infer() -> float:
        with autocast(variant, DEVICE):
            return float(model.eval()(images).reconstruction.sum())

    return infer


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("part", ["forward", "step"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_training_step(benchmark: Any, case: Case, part: str, variant: str) -> None:
    if part == "forward" and variant.endswith("graph"):
        pytest.skip("an inference is not trained")
    seconds: list[float] = []

    def timed() -> None:
        seconds.append(worker.step()[0])

    with Worker(partial(make_step, case, part, variant), torch.get_num_threads()) as worker:
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
