"""Time and memory of a whole training step, and of an inference, of the official configurations.

`make bench-step` runs them all and writes JSON; `-k tetrominoes`, `-k step`, `-k I3`, ... choose
some. Each case runs in a process of its own. pytest-benchmark times a request to that process; its
own clock, which leaves out the request, is in `extra_info`, with the peak memory: on the CPU what
the process took above its start, on a GPU `max_memory_allocated`. On a GPU the batches are the
official ones, and a step is also timed with other precisions, compiled and as a CUDA graph.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.processes import Step, Worker, quantiles
from benchmarks.steps import Case, training_step
from emorl.models import EfficientMORL
from emorl.training.graph import GraphedStep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 20 if DEVICE == "cuda" else 3
BATCHES = {"tetrominoes": 4, "multi_dsprites": 2, "clevr6": 2}  # on the CPU; official: 32
SIDES = {"tetrominoes": 35, "multi_dsprites": 64, "clevr6": 96}  # official
VARIANTS = ["float32", "tf32", "bf16", "compiled", "graph"] if DEVICE == "cuda" else ["float32"]


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
    torch.backends.cudnn.allow_tf32 = variant != "float32"
    torch.set_float32_matmul_precision("highest" if variant == "float32" else "high")
    model, images = case.build(DEVICE)
    if variant == "compiled":
        for network in model.children():
            network.compile()
    bf16 = torch.autocast(DEVICE, torch.bfloat16) if variant == "bf16" else nullcontext()
    if part == "forward":

        def infer() -> float:
            with bf16:
                return float(model.eval()(images).reconstruction.sum())

        return infer

    def loss() -> Tensor:
        with bf16:
            return model.objective(images).loss

    return graphed_step(model, images) if variant == "graph" else training_step(model, loss)


def graphed_step(model: EfficientMORL, images: Tensor) -> Step:
    noise = torch.Generator(DEVICE)

    def backward(images: Tensor, *_: Any) -> dict[str, Tensor]:
        loss = model.objective(images, generator=noise).loss
        loss.backward()
        return {"loss": loss.detach()}

    def clip() -> Tensor:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    step = GraphedStep(backward, clip, optimizer, noise)
    return lambda: step(images, None, 0, {})["loss"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("part", ["forward", "step"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_training_step(benchmark: Any, case: Case, part: str, variant: str) -> None:
    if (part, variant) == ("forward", "graph"):
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
