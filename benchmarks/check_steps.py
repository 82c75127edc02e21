"""The work that `benchmarks/check.py` times, in a process that imports one source tree's emorl.

It reads lines "CASE STEPS" and answers "SECONDS CPU_SECONDS" of so many steps, or "error: TEXT".
What it uses must be as old as the trees that it is to measure.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch

from emorl import ops
from emorl.memory import keep_memory
from emorl.models import MODELS
from emorl.training.config_file import find_config, load_config

Step = Callable[[], None]
BATCH, WARM_UP = 4, 3


def training_step(name: str) -> Step:
    """Loss, backward pass, clipping and Adam of a model in its configuration for laptops."""
    config = load_config(find_config("tetrominoes-laptop", name), name).network
    model = MODELS[name](config)
    images = torch.rand(BATCH, 3, *config.image_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model.objective(images).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def call(operator: Callable[..., Any], *shapes: tuple[int, ...]) -> Step:
    """An operator and its gradients, of normal numbers."""
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]

    def step() -> None:
        output = operator(*inputs)
        torch.autograd.grad(output, inputs, torch.ones_like(output))

    return step


CASES: dict[str, Callable[[], Step]] = {
    **{name: partial(training_step, name) for name in sorted(MODELS)},
    "ops.slot_attention": lambda: call(ops.slot_attention, (4, 7, 64), *[(4, 9216, 64)] * 2),
    "ops.mixture_nll": lambda: call(
        partial(ops.mixture_nll, torch.rand(4, 3, 96, 96), sigma=0.1), (4, 7, 4, 96, 96)
    ),
    "ops.spatial_broadcast": lambda: call(ops.spatial_broadcast, (28, 64), (64, 64, 64)),
    "ops.convolution": lambda: call(
        partial(ops.convolution, padding=1, activation="elu"),
        (7, 64, 64, 64),
        (64, 64, 3, 3),
        (64,),
    ),
}


@cache
def warmed_up(case: str) -> Step:
    """The step of a case, after a few of them."""
    torch.manual_seed(0)
    step = CASES[case]()
    for _ in range(WARM_UP):
        step()
    return step


def seconds(case: str, steps: int) -> tuple[float, float]:
    """How long so many steps of a case took, and how much of the processors' time."""
    step = warmed_up(case)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return time.perf_counter() - begin, time.process_time() - begin_cpu


def main() -> None:
    """Obey until there are no more lines."""
    keep_memory()
    for line in sys.stdin:
        case, steps = line.split()
        try:
            print(*seconds(case, int(steps)), flush=True)
        except Exception as error:  # whatever it is, it is told
            text = " ".join(str(error).split())
            print(f"error: {type(error).__name__}: {text}", flush=True)


if __name__ == "__main__":
    main()
