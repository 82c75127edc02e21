"""Which kernels the time of a training step goes to: milliseconds and launches of each.

python -m emorl.bench.step_kernels --device cuda --cases clevr6:32:3 --variants tf32 bf16
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from emorl.bench import kernels
from emorl.bench.records import machine, write
from emorl.bench.step.cases import Case
from emorl.bench.step.variants import variant_step
from emorl.bench.workers import Step
from emorl.paths import local

WARM_UP, STEPS = 4, 3
SHOWN = 16  # kernels of a printed table
VARIANTS = ("float32", "tf32", "bf16")


class Kernel(NamedTuple):
    """A kernel's share of a step; on the CPU an operator's, without those that it calls."""

    name: str
    milliseconds: float
    launches: float


def kernels_of(step: Step, device: str) -> list[Kernel]:
    """The kernels of a step, means of a few, those that take longest first."""
    for _ in range(WARM_UP):
        step()
    on_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            step()
    found = [
        Kernel(
            event.key,
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3 / STEPS,
            event.count / STEPS,
        )
        for event in seen.key_averages()
        if event.device_type.name == ("CUDA" if on_gpu else "CPU")
    ]
    return sorted(found, key=lambda kernel: -kernel.milliseconds)


def describe(title: str, found: Iterable[Kernel]) -> str:
    """Lines of a table, under the sums of all kernels."""
    rows = [*found]
    total, launches = sum(row.milliseconds for row in rows), sum(row.launches for row in rows)
    lines = [f"{title}: {total:.2f} ms, {launches:.0f} launches"]
    lines += [f"{row.milliseconds:9.3f} ms {row.launches:7.0f}  {row.name}" for row in rows[:SHOWN]]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", type=Case.parse, default=[Case.parse("clevr6:2:3")])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["float32"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=local, help="JSON file of the results")
    options = kernels.parse(parser)
    record: dict[str, Any] = {"machine": machine(torch.get_num_threads()), "results": []}
    for case in options.cases:
        for variant in options.variants:
            model, images = case.build(options.device)
            step = variant_step(model, images, variant, case.run_config().trainer)
            found = kernels_of(step, options.device)
            print(describe(f"{case}, {variant}", found), flush=True)
            rows = [kernel._asdict() for kernel in found]
            record["results"].append({"case": str(case), "variant": variant, "kernels": rows})
            if options.out:
                write(options.out, record)


if __name__ == "__main__":
    main()
