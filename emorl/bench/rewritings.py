"""What each rewriting of a training step saves: all of them, switched on one after another.

The first row is a plain step that does what the released code does; each further row adds one
rewriting. Every row runs in a process of its own, with the same weights, images and noise, and the
processes take turns.

    python -m emorl.bench.rewritings --cases tetrominoes:8:3 clevr6:2:3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from emorl.bench import kernels
from emorl.bench.records import machine, write
from emorl.bench.step.cases import Case
from emorl.bench.step.variants import training_step
from emorl.bench.workers import ALL_DIED, Step, Worker, first_losses, in_turns
from emorl.models.efficient_morl import EfficientMORL, hierarchy, plain
from emorl.models.efficient_morl import model as efficient_morl
from emorl.nn.networks import LinearFeatures, SpatialBroadcastDecoder
from emorl.nn.posterior import Decode, Likelihood, Score
from emorl.ops import Backend, slot_attention
from emorl.paths import local
from emorl.training.optimizers import make_optimizers

REWRITINGS = {
    "layers": "channels last, activations in place, Dual GRU in one product",
    "score once": "each score differentiated once, activations freed",
    "split": "first decoder convolution split",
    "absorbed": "keys, values and last encoder layer absorbed",
    "fused": "fused operators",
    "convolutions": "convolutions with fewer multiplications",
    "memory": "memory kept",
    "chunk": "scored in two halves",
}


def differentiate_twice(
    decode: Decode,
    likelihood: Likelihood,
    slots: Tensor,
    weights: Sequence[Tensor] | None,
    *,
    batch: int,
    gradient: bool,
    images_at_once: None,
    shared: Sequence[Tensor],
) -> Score:
    """Instead of `score_once`: refinement's gradient now, the weights' at the end."""
    everything = slice(0, batch)
    decoded = decode(slots, everything, *shared)
    per_image = likelihood(decoded, everything, None)[0]
    nll = per_image.mean()
    (now,) = torch.autograd.grad(nll, slots, create_graph=True) if gradient else (None,)
    return Score(
        nll,
        per_image.detach(),
        None if now is None else now.detach(),
        decoded.detach(),
    )


def convolve_broadcast(self: Any, slots: Tensor, positions: Tensor) -> Tensor:
    """Instead of `SpatialBroadcastDecoder._first`: every slot's own latent image."""
    broadcast = (slots[:, :, None, None] + positions).contiguous(memory_format=torch.channels_last)
    return self.activation(self.convolutions[0](broadcast), inplace=True)


class DenseAttention(NamedTuple):
    """Instead of `AbsorbedAttention`: keys and values of every pixel."""

    key: Tensor
    value: Tensor

    @classmethod
    def through(cls, features: LinearFeatures, key: nn.Module, value: nn.Module) -> DenseAttention:
        """Project every pixel's features by two layers."""
        dense = features.dense()
        return cls(key(dense), value(dense))

    def attend(self, query: Tensor, _: bool, backend: Backend) -> tuple[Tensor, None]:
        """The slots' means of the values, without the attention."""
        return slot_attention(query, self.key, self.value, backend=backend), None


@contextmanager
def only(on: Sequence[str]) -> Iterator[None]:
    """Undo the rewritings that are not on, where that takes other code."""
    undone = {
        "score once": patch.object(efficient_morl, "score_once", differentiate_twice),
        "split": patch.multiple(
            SpatialBroadcastDecoder, _splits=lambda *_: False, _first=convolve_broadcast
        ),
        "absorbed": patch.object(hierarchy, "AbsorbedAttention", DenseAttention),
    }
    with ExitStack() as stack:
        for name, without in undone.items():
            if name not in on:
                stack.enter_context(without)
        yield


def build(case: Case, on: Sequence[str]) -> tuple[EfficientMORL, Tensor]:
    """The network and the images of a row."""
    model, images = case.build()
    assert isinstance(model, EfficientMORL)
    half = model.config.num_slots * case.batch // 2
    model.config.score_chunk = half if "chunk" in on else None
    for part in (model.config, model.posterior, model.decoder):
        part.backend = "auto" if "fused" in on else "reference"
    for network in (model.encoder, model.decoder):
        network.convolution_backend = "auto" if "convolutions" in on else "reference"
    return model, images


def objective(model: EfficientMORL, images: Tensor, on: Sequence[str]) -> Tensor:
    """The loss of a row."""
    if "layers" not in on:
        return plain.objective(model, images)
    with only(on):
        return model.objective(images).loss


def make_step(case: Case, on: Sequence[str]) -> Step:
    """A row's training step."""
    model, images = build(case, on)
    optimizers = make_optimizers(model.parameters(), "adam", 1e-4)
    return training_step(model, lambda: objective(model, images, on), optimizers)


def loss_and_gradients(case: Case, on: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a row, and its gradients by the parameters' names."""
    model, images = build(case, on)
    torch.manual_seed(1)
    loss = objective(model, images, on)
    loss.backward()
    return loss.detach(), {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


def differences(case: Case, rows: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """How far each row's loss and largest gradient are from the first row's, relatively."""
    loss, gradients = loss_and_gradients(case, rows[0])
    largest = max(gradients, key=lambda name: float(gradients[name].norm()))
    results = []
    for on in rows:
        other, others = loss_and_gradients(case, on)
        gap = (others[largest] - gradients[largest]).norm() / gradients[largest].norm()
        results.append({"loss": float((other - loss).abs() / loss.abs()), "gradient": float(gap)})
    return results


def measure(case: Case, threads: int, rounds: int) -> dict[str, Any]:
    """Every row's time, memory and differences."""
    names = [*REWRITINGS]
    rows = [names[:count] for count in range(len(names) + 1)]
    labels = ["as released", *REWRITINGS.values()]
    gaps = differences(case, rows)
    with ExitStack() as stack:
        workers = {
            label: stack.enter_context(
                Worker(partial(make_step, case, on), threads, keep="memory" in on)
            )
            for label, on in zip(labels, rows, strict=True)
        }
        first_losses(workers, 1)  # a step to warm up
        results = in_turns(workers, rounds)
    measured = [
        {"rewriting": label, **results[label], "difference": gap}
        for label, gap in zip(labels, gaps, strict=True)
        if label in results
    ]
    return {"case": str(case), "rows": measured}


def describe(result: dict[str, Any]) -> str:
    """A table in Markdown."""
    if not result["rows"]:
        return f"{result['case']}: {ALL_DIED}"
    first = result["rows"][0]["seconds"]["median"]
    lines = [
        f"{result['case']}:",
        "",
        "| rewriting, on top of those above | s a step | faster | MiB above the start "
        "| loss differs by | gradient by |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        seconds, gap = row["seconds"]["median"], row["difference"]
        lines.append(
            f"| {row['rewriting']} | {seconds:.3f} | {first / seconds:.2f}x "
            f"| {row['peak_bytes_above_start'] / 2**20:.0f} "
            f"| {gap['loss']:.0e} | {gap['gradient']:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", type=Case.parse, metavar="CONFIG:BATCH:STEPS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=local, help="JSON file of the results")
    options = kernels.parse(parser)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)  # fails before the work, not after it
    results = []
    for case in options.cases or map(Case.parse, ["tetrominoes:8:3", "clevr6:2:3"]):
        results.append(measure(case, options.threads, options.rounds))
        print(describe(results[-1]), flush=True)
        if options.out:
            write(options.out, {"machine": machine(options.threads), "results": results})
    if not all(result["rows"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
