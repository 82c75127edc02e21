"""Time and memory of a training step against the released code, side by side.

Each variant runs in a process of its own, with the same weights, images and noise; the processes
take turns, so that all see the same machine. The losses are compared before anything is timed.

    python -m benchmarks.against_released --official PATH --cases clevr6:2:3 tetrominoes:32:3
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import released
from emorl.compat.official import load_checkpoint
from emorl.memory import keep_heap
from emorl.training.config_file import find_config, load_config

VARIANTS = {
    "emorl": "emorl",
    "released": "as released",
    "first-order": "as released, but create_graph=False",
}
PARTS = ("train", "inference")


@dataclass(frozen=True)
class Case:
    """A configuration's network at a batch size and a number of refinement steps.

    `chunk` is emorl's `score_chunk`, 0 for none.
    """

    config: str
    batch: int
    steps: int
    chunk: int = 0

    @classmethod
    def parse(cls, text: str) -> Case:
        """From "clevr6:2:3", or "clevr6:2:3:7" with a chunk."""
        config, *numbers = text.split(":")
        return cls(config, *map(int, numbers))

    def __str__(self) -> str:
        chunk = f", score_chunk {self.chunk}" if self.chunk else ""
        return f"{self.config}, batch {self.batch}, I={self.steps}{chunk}"


def memory(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def make_step(case: Case, part: str, variant: str, checkout: Path) -> Callable[[], float]:
    """One training step, or one inference, and the loss (of an inference 0)."""
    config = load_config(find_config(case.config)).network
    net = released.net_of(config, case.steps)
    torch.manual_seed(0)
    theirs: Any = released.build(checkout, net, case.batch)
    images = torch.rand(case.batch, 3, *config.image_size)
    model: Any = theirs
    if variant == "emorl":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.pth"
            torch.save({"model": theirs.state_dict()}, path)
            model = load_checkpoint(path, net, case.steps, convolution_backend="auto")
        model.config.score_chunk = case.chunk or None
    model.train(part == "train")

    if part == "inference":

        def infer() -> float:
            with torch.no_grad():
                if variant == "emorl":
                    model(images)
                else:
                    model(2 * images - 1, None, 0, 1.0)
            return 0.0

        return infer
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=variant == "emorl" or None)
    derivatives = released.first_derivatives if variant == "first-order" else nullcontext

    def train() -> float:
        optimizer.zero_grad()
        with derivatives():
            if variant == "emorl":
                loss = model.objective(images).loss
            else:
                loss = model(2 * images - 1, None, 0, 1.0)["total_loss"]
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return float(loss.detach())

    return train


def work(
    pipe: Connection, case: Case, part: str, variant: str, checkout: Path, threads: int
) -> None:
    """A process's life: build, then a step whenever asked, then the peak of its memory."""
    torch.set_num_threads(threads)
    if variant == "emorl":
        keep_heap()
    step = make_step(case, part, variant, checkout)
    start = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    while pipe.recv() == "step":
        torch.manual_seed(1)
        begin = time.perf_counter()
        loss = step()
        pipe.send((time.perf_counter() - begin, loss))
    pipe.send(memory("VmHWM") - start)


def compare(case: Case, part: str, checkout: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds and bytes of every variant."""
    context = multiprocessing.get_context("spawn")
    variants = [*VARIANTS] if part == "train" and case.steps else ["emorl", "released"]
    pipes: dict[str, Connection] = {}
    for variant in variants:
        pipes[variant], other = context.Pipe()
        arguments = (other, case, part, variant, checkout, threads)
        context.Process(target=work, args=arguments, daemon=True).start()
        other.close()  # a process that dies then ends our wait for its answer

    def ask(variant: str) -> tuple[float, float]:
        pipes[variant].send("step")
        answer: tuple[float, float] = pipes[variant].recv()
        return answer

    losses = [ask(variant)[1] for variant in variants]
    if not np.allclose(losses, losses[0], rtol=1e-4):
        raise AssertionError(
            f"{case}: the losses differ: {dict(zip(variants, losses, strict=True))}"
        )
    seconds = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant in variants:
            seconds[variant].append(ask(variant)[0])
    result: dict[str, Any] = {"case": str(case), "part": part, "loss": losses[0], "variants": {}}
    for variant, pipe in pipes.items():
        pipe.send("stop")
        low, median, high = np.quantile(seconds[variant], [0.2, 0.5, 0.8]).tolist()
        result["variants"][variant] = {
            "seconds": {"median": median, "p20": low, "p80": high},
            "images_per_second": case.batch / median,
            "peak_bytes_above_start": pipe.recv(),
        }
    return result


def describe(result: dict[str, Any]) -> str:
    """Lines of a table, each variant against emorl."""
    lines = [f"{result['case']}, {result['part']}"]
    ours = result["variants"]["emorl"]
    for name, numbers in result["variants"].items():
        seconds, peak = numbers["seconds"], numbers["peak_bytes_above_start"]
        lines.append(
            f"  {VARIANTS[name]:36} {seconds['median']:8.3f} s ({seconds['p20']:.3f} to "
            f"{seconds['p80']:.3f}) {seconds['median'] / ours['seconds']['median']:6.2f}x"
            f" {peak / 2**20:8.0f} MiB {peak / max(1, ours['peak_bytes_above_start']):6.2f}x"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of EfficientMORL")
    parser.add_argument("--cases", nargs="+", type=Case.parse, metavar="CONFIG:BATCH:STEPS[:CHUNK]")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["train"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    cases = options.cases or [Case("clevr6", 2, 3), Case("tetrominoes", 32, 3)]
    try:
        released.check(options.official)
        for case in cases:
            find_config(case.config)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads,
        "torch": torch.__version__,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    results = []
    for case in cases:
        for part in options.parts:
            result = compare(case, part, options.official, options.threads, options.rounds)
            results.append(result)
            print(describe(result), flush=True)
            if options.out:  # after each: a later failure loses nothing
                record = {"machine": machine, "results": results}
                options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
