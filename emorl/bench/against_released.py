"""Time and memory of a training step against the released code, side by side.

Each variant runs in a process of its own, with the same weights, images and noise; the processes
take turns, so that all see the same machine. Losses that differ by more than rounding are named.

    python -m emorl.bench.against_released --official PATH --cases clevr6:2:3 tetrominoes:32:3
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from emorl.bench import kernels, released
from emorl.bench.records import machine, write
from emorl.bench.steps import ON_GPU, Case, training_step, variant_step
from emorl.bench.workers import ALL_DIED, Step, Worker, first_losses, in_turns
from emorl.paths import local
from emorl.training.config_file import find_config

VARIANTS = {
    "emorl": "emorl",
    **{variant: f"emorl, {variant}" for variant in ON_GPU},
    "released": "as released",
    "first-order": "as released, but create_graph=False",
}
# By how much a loss may differ: where factors are rounded, by their rounding in each of about 20
# layers that an image passes, else by another order of sums.
ROUNDING = {"tf32": 20 * 2**-11, "bf16": 20 * 2**-8}
_TF32_BY_DEFAULT = ("released", "first-order")  # PyTorch's default for a GPU's convolutions
WARM_UP = 5  # steps on a GPU: kernels are chosen, graphs captured
PARTS = ("train", "inference")


def make_step(case: Case, part: str, variant: str, checkout: Path, device: str) -> Step:
    """One training step, or one inference, and the loss (of an inference 0)."""
    ours = variant not in ("released", "first-order")
    net = released.net_of(case.network(), case.steps)
    torch.manual_seed(0)
    theirs: Any = released.build(checkout, net, case.batch)
    images = torch.rand(case.batch, 3, *case.network().image_size).to(device)
    model: Any = theirs
    if ours:
        model = released.ours(theirs, net)
        model.config.score_chunk = case.chunk or None
    model.to(device).train(part == "train")

    if part == "inference":

        def infer() -> float:
            with torch.no_grad():
                if ours:
                    model(images)
                else:
                    model(2 * images - 1, None, 0, 1.0)
            return 0.0

        return infer

    if ours:
        return variant_step(model, images, variant)
    train = training_step(
        model, lambda: model(2 * images - 1, None, 0, 1.0)["total_loss"], fused=None
    )

    def train_with_first_derivatives() -> float:
        with released.first_derivatives():
            return train()

    return train_with_first_derivatives if variant == "first-order" else train


def variants_of(case: Case, part: str, device: str) -> list[str]:
    """The variants to compare; the first one's loss is the reference."""
    ours = ON_GPU if (device, part) == ("cuda", "train") else ["emorl"]
    twice = part == "train" and case.steps  # the released code differentiates its gradients
    return [*ours, "released", *(["first-order"] if twice else [])]


def differing(losses: dict[str, float], device: str) -> list[str]:
    """The variants whose loss differs from the first one's by more than its rounding."""
    first = next(iter(losses.values()), 0.0)
    found = []
    for variant, loss in losses.items():
        in_tf32 = device == "cuda" and variant in _TF32_BY_DEFAULT
        rounding = ROUNDING.get("tf32" if in_tf32 else variant[:4], 1e-4)
        if not abs(loss - first) <= rounding * abs(first):
            found.append(variant)
    return found


def compare(
    case: Case, part: str, checkout: Path, threads: int, rounds: int, device: str
) -> dict[str, Any]:
    """Seconds and bytes of every variant."""
    with ExitStack() as stack:
        workers = {
            variant: stack.enter_context(
                Worker(
                    partial(make_step, case, part, variant, checkout, device),
                    threads,
                    keep=variant == "emorl",
                )
            )
            for variant in variants_of(case, part, device)
        }
        losses = first_losses(workers, WARM_UP if device == "cuda" else 1)
        results = in_turns(workers, rounds)
    for result in results.values():
        result["images_per_second"] = case.batch / result["seconds"]["median"]
    wrong = differing(losses, device)
    described = {"case": str(case), "part": part, "losses": losses, "differing": wrong}
    return {**described, "variants": results}


def describe(result: dict[str, Any]) -> str:
    """Lines of a table, each variant against the first."""
    lines = [f"{result['case']}, {result['part']}"]
    if not result["variants"]:
        return f"{lines[0]}: {ALL_DIED}"
    ours = next(iter(result["variants"].values()))
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
    parser.add_argument("--official", type=local, required=True, help="checkout of EfficientMORL")
    parser.add_argument("--cases", nargs="+", type=Case.parse, metavar="CONFIG:BATCH:STEPS[:CHUNK]")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["train"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=local, help="JSON file of the results")
    options = kernels.parse(parser)
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
            result = compare(
                case, part, options.official, options.threads, options.rounds, options.device
            )
            results.append(result)
            print(describe(result), flush=True)
            if options.out:  # after each: a later failure loses nothing
                write(options.out, {"machine": machine(options.threads), "results": results})
    if wrong := [f"{r['case']}: {r['differing']}" for r in results if r["differing"]]:
        sys.exit(f"the losses differ: {wrong}")
    if not all(result["variants"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
