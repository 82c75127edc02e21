"""Measuring a model on held-out images: every metric and every term of the loss, per image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from emorl.data import Batch, ObjectDataset
from emorl.evaluation.noise import ImageNoise
from emorl.fields import fit
from emorl.metrics import adjusted_rand_index, mean_iou, mean_squared_error
from emorl.models import ObjectCentricModel, Objective

SOMETIMES_UNDEFINED = ("fg_ari", "fg_miou", "ari", "miou")  # of an image without objects, say
NOISE = "each image's own, of seed and index; so is the loss that refinement descends"


def evaluate(
    model: ObjectCentricModel,
    dataset: ObjectDataset,
    *,
    images: int = 320,
    refinement_steps: int | None = None,
    num_slots: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str | None = None,
    sharded: bool = False,
) -> dict[str, Any]:
    """Measure a model on the first images of a data set.

    Slots are samples, and each image is treated as if it were alone, as in the published protocol,
    which takes one at a time: its noise belongs to `seed` and to its index in the data set, and
    refinement descends its own loss (`ImageNoise`). So an image's numbers do not depend, but for
    rounding, on `images`, `batch_size`, the number of processes or the device.

    Args:
        model: any model; its mode and its gradients stay as they are. It stays on `device`.
        dataset: images, with masks for the segmentation metrics.
        images: how many.
        refinement_steps: None for the model's own number.
        num_slots: None for the model's own number.
        batch_size: images at a time.
        seed: of the model's noise.
        device: where to compute; None stays where the model is.
        sharded: share the batches out among the processes of `torch.distributed`, if there are
            several. All of them must call; each gets the same result as one process alone.

    Returns:
        "images" (measured), "refinement_steps", "num_slots", "batch_size", "seed", "noise" (what
        it belongs to, in words), "notes" (what else a reader should know) and "metrics": name ->
        {"mean", "std" (population), "count", "excluded" (images for which the metric is not
        defined)}. Metrics are fg_ari, ari, fg_miou, miou, mse, nll and kl (the last step's, in
        nats; without a likelihood the squared error and 0), and each term of the loss under its
        own name.

    Raises:
        ValueError: if a number is not positive, or what must be defined is NaN for an image: the
            model computes nonsense.
    """
    for name, value in {"images": images, "batch_size": batch_size}.items():
        if fit(name, value, int) < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    seed = fit("seed", seed, int)
    device = torch.device(device or next(model.parameters()).device)
    model.to(device)
    count = dataset.count(images)
    starts = range(0, count, batch_size)
    rank, processes = _rank_and_world_size() if sharded else (0, 1)
    measured = []
    with _evaluating(model):
        for start in starts[rank::processes]:
            indices = range(start, min(start + batch_size, count))
            batch = dataset.__getitems__(indices).to(device)
            objective = model.score(
                batch.image,
                refinement_steps=refinement_steps,
                num_slots=num_slots,
                generator=ImageNoise(indices, seed=seed, device=device),
            )
            values = _per_image(batch, objective)
            measured.append({name: x.cpu().double() for name, x in values.items()})
    if processes > 1:
        measured = _gathered(measured, len(starts), processes)
    metrics = {name: _summary(name, torch.cat([m[name] for m in measured])) for name in measured[0]}
    return {
        "images": count,
        "refinement_steps": _or_configured(model, "refinement_steps", refinement_steps),
        "num_slots": _or_configured(model, "num_slots", num_slots),
        "batch_size": batch_size,
        "seed": seed,
        "noise": NOISE,
        "notes": _notes(dataset, images, count, metrics),
        "metrics": metrics,
    }


@contextmanager
def _evaluating(model: ObjectCentricModel) -> Iterator[None]:
    """The model in evaluation mode, for a while."""
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)


def _rank_and_world_size() -> tuple[int, int]:
    """This process's rank, and the number of processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _gathered(
    own: list[dict[str, Tensor]], batches: int, processes: int
) -> list[dict[str, Tensor]]:
    """All batches in order: the process of rank r has measured r, r + processes, ..."""
    shares: list[list[dict[str, Tensor]]] = [[] for _ in range(processes)]
    distributed.all_gather_object(shares, own)
    return [shares[batch % processes][batch // processes] for batch in range(batches)]


def _per_image(batch: Batch, objective: Objective) -> dict[str, Tensor]:
    """Every number of every image, name -> [B]."""
    decomposition = objective.decomposition
    values = {}
    if batch.mask is not None:
        true, predicted = batch.mask[:, 0].long(), decomposition.labels()
        for prefix, foreground in (("fg_", True), ("", False)):
            values[f"{prefix}ari"] = adjusted_rand_index(
                true, predicted, foreground_only=foreground
            )
            values[f"{prefix}miou"] = mean_iou(true, predicted, foreground_only=foreground)
    image = batch.image.to(decomposition.reconstruction.dtype) / 255
    values["mse"] = mean_squared_error(image, decomposition.reconstruction)
    last = {"nll": objective.nll_per_image, "kl": objective.kl_per_image}
    return {**values, **last, **objective.terms}


def _summary(name: str, values: Tensor) -> dict[str, float | int]:
    known = values[~values.isnan()]
    if len(known) < len(values) and name not in SOMETIMES_UNDEFINED:
        image = int(values.isnan().nonzero()[0])
        raise ValueError(f"{name}: expected a number for each image, got nan for image {image}")
    return {
        "mean": known.mean().item(),
        "std": known.std(correction=0).item(),
        "count": len(known),
        "excluded": len(values) - len(known),
    }


def _or_configured(model: ObjectCentricModel, name: str, value: int | None) -> int | None:
    return getattr(model.config, name, None) if value is None else value


def _notes(
    dataset: ObjectDataset, requested: int, count: int, metrics: dict[str, dict[str, float | int]]
) -> list[str]:
    notes = []
    if count < requested:
        notes.append(f"{dataset.name} has {count} images; {requested} were asked for")
    if "ari" not in metrics:
        notes.append(f"{dataset.name} has no masks: no segmentation metrics")
    for name, summary in metrics.items():
        if summary["excluded"]:
            notes.append(f"{name} is not defined for {summary['excluded']} images, left out")
    return notes
