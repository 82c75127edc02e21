"""Time and memory of a training step against the released code, side by side.

Each variant runs in a process of its own, with the same weights, images and noise; the processes
take turns, so that all see the same machine. The losses are compared before anything is timed.

    python -m benchmarks.against_released --official PATH --cases clevr6:2:3 tetrominoes:32:3
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import released
from benchmarks.processes import Step, Worker, in_turns, machine
from benchmarks.steps import Case, training_step
from emorl.compat.official import load_checkpoint
from emorl.training.config_file import find_config

VARIANTS = {
    "emorl": "emorl",
    "released": "as released",
    "first-order": "as released, but create_graph=False",
}
PARTS = ("train", "inference")


def make_step(case: Case, part: str, variant: str, checkout: Path) -> Step:
    """One training step, or one inference, and the loss (of an inference 0)."""
    net = released.net_of(case.network(), case.steps)
    torch.manual_seed(0)
    theirs: Any = released.build(checkout, net, case.batch)
    images = torch.rand(case.batch, 3, *case.network().image_size)
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

    if variant == "emorl":
        return training_step(model, lambda: model.objective(images).loss)
    train = training_step(
        model, lambda: model(2 * images - 1, None, 0, 1.0)["total_loss"], fused=None
    )

    def train_with_first_derivatives() -> float:
        with released.first_derivatives():
            return train()

    return train_with_first_derivatives if variant == "first-order" else train


def compare(case: Case, part: str, checkout: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds and bytes of every variant."""
    variants = [*VARIANTS] if part == "train" and case.steps else ["emorl", "released"]
    with ExitStack() as stack:
        workers = {
            variant: stack.enter_context(
                Worker(
                    partial(make_step, case, part, variant, checkout),
                    threads,
                    keep=variant == "emorl",
                )
            )
            for variant in variants
        }
        losses = {variant: worker.step()[1] for variant, worker in workers.items()}
        if not np.allclose([*losses.values()], losses["emorl"], rtol=1e-4):
            raise AssertionError(f"{case}: the losses differ: {losses}")
        results = in_turns(workers, rounds)
    for result in results.values():
        result["images_per_second"] = case.batch / result["seconds"]["median"]
    return {"case": str(case), "part": part, "loss": losses["emorl"], "variants": results}


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
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    results = []
    for case in cases:
        for part in options.parts:
            result = compare(case, part, options.official, options.threads, options.rounds)
            results.append(result)
            print(describe(result), flush=True)
            if options.out:  # after each: a later failure loses nothing
                record = {"machine": machine(options.threads), "results": results}
                options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
