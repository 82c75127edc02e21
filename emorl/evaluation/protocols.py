"""Measuring a model on held-out images: every metric and every term of the loss, per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from emorl.data import ObjectDataset
from emorl.evaluation.measuring import (
    Measurement,
    PerceptualMetric,
    device_of,
    evaluating,
    require_subject,
)
from emorl.evaluation.per_image import FROM_ATTENTION, MASKS, SOMETIMES_UNDEFINED
from emorl.evaluation.summaries import INTERVAL, Summary, summarise
from emorl.fields import fit, shown
from emorl.memory import require_slots
from emorl.models import ObjectCentricModel
from emorl.terminal import tracked

Share = list[dict[str, Tensor]] | Exception  # what a process has measured, or why it could not
NOISE = "each image's own, of seed and index; so is the loss that refinement descends"


@dataclass(frozen=True)
class Protocol:
    """How a model is measured. Numbers of two protocols do not belong into one table.

    Attributes:
        name: of the protocol.
        meaning: in words.
        images: how many it takes; None for any number.
        means: whether slots are the means of their posteriors; else samples of them.
        whole: whether images that were resized for the model are compared with the true masks as
            they were before.
    """

    name: str
    meaning: str
    images: int | None = None
    means: bool = False
    whole: bool = False


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("sample", "one sample of the slots; masks of the images' size"),
        Protocol("mean", "the mean of each posterior; masks of the images' size", means=True),
        Protocol(
            "paper",
            "that of Emami et al. (2021): 320 images, or all if there are fewer, one sample of the "
            "slots; masks resized to the true ones' size",
            images=320,
            whole=True,
        ),
    )
}


def evaluate(
    model: ObjectCentricModel,
    dataset: ObjectDataset,
    *,
    protocol: str = "sample",
    images: int = 320,
    samples: int = 1,
    refinement_steps: int | None = None,
    num_slots: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str | None = None,
    sharded: bool = False,
    attention: bool = False,
    perceptual: PerceptualMetric | None = None,
    per_image: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a model on the first images of a data set.

    Each image is treated as if it were alone, as in the published protocol, which takes one at a
    time: its noise belongs to `seed` and to its index in the data set, and refinement descends its
    own loss (`ImageNoise`). So an image's numbers do not depend, but for rounding, on `images`,
    `batch_size`, the number of processes or the device.

    Args:
        model: any model; its mode and its gradients stay as they are. It stays on `device`.
        dataset: images, with masks for the segmentation metrics.
        protocol: one of `PROTOCOLS`.
        images: how many.
        samples: how often each image is measured, with the seeds from `seed` on. Its numbers are
            the means over them.
        refinement_steps: None for the model's own number.
        num_slots: None for the model's own number.
        batch_size: images at a time.
        seed: of the model's noise.
        device: where to compute; None stays where the model is.
        sharded: share the batches out among the processes of `torch.distributed`, if there are
            several. All of them must call; each gets the same result as one process alone.
        attention: score the maps of the last slot attention as well, if the model has any, under
            names that begin with "attention_".
        perceptual: a distance of images and reconstructions, such as
            `emorl.metrics.perceptual.PerceptualDistance`; its name is "lpips".
        per_image: return each image's numbers as well.
        progress: show a bar while it works, where stderr is a terminal.

    Returns:
        "protocol" and "protocol_meaning", "images" (measured), "samples", "refinement_steps",
        "num_slots", "batch_size", "seed", "noise" (what it belongs to, in words), "masks" (which
        are scored), "interval" (what low and high are), "notes" (what else a reader should know)
        and "metrics": name -> {"mean", "std" (population), "low", "high", "count", "excluded"
        (images for which the metric is not defined)}. "nll" and "kl" are those of the last
        refinement step, as `Objective`'s; each term of the loss has its own name too. With several
        samples "seeds": seed -> name -> mean. With `per_image` also "per_image": name -> values,
        image by image, those of each seed after the other; "seed" and "image" are among the names.

    Raises:
        ValueError: if a number is not positive or not the protocol's, there is no such protocol, an
            image's slots are more than all memory, or what must be defined is NaN for an image: the
            model computes nonsense.
    """
    require_subject(model, dataset)
    chosen = find_protocol(protocol)
    _require_numbers(chosen, images=images, batch_size=batch_size, samples=samples)
    seed = fit("seed", seed, int)
    slots = fit("num_slots", num_slots, int | None) or model.config.num_slots
    require_slots(slots, dataset.image_size)
    device = device_of(model, device)
    model.to(device)
    seeds, count = range(seed, seed + samples), dataset.count(images)
    measurement = Measurement(
        model,
        dataset,
        seeds=seeds,
        means=chosen.means,
        whole=_whole(dataset) if chosen.whole else None,
        refinement_steps=refinement_steps,
        num_slots=num_slots,
        device=device,
        attention=attention,
        perceptual=perceptual,
    )
    batches = [
        range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)
    ]
    values = _measured(measurement, batches, progress, *_rank_and_processes(sharded))
    metrics = {name: _summary(name, x.mean(0)) for name, x in values.items()}
    result = {
        "protocol": chosen.name,
        "protocol_meaning": chosen.meaning,
        "images": count,
        "samples": samples,
        "refinement_steps": _or_configured(model, "refinement_steps", refinement_steps),
        "num_slots": _or_configured(model, "num_slots", num_slots),
        "batch_size": batch_size,
        "seed": seed,
        "noise": NOISE,
        "masks": MASKS,
        "interval": INTERVAL,
        "notes": _notes(measurement, images, count, metrics),
        "metrics": metrics,
    }
    if samples > 1:
        result["seeds"] = {
            str(own): {name: x[row].nanmean().item() for name, x in values.items()}
            for row, own in enumerate(seeds)
        }
    if per_image:
        result["per_image"] = {
            "seed": [own for own in seeds for _ in range(count)],
            "image": [*range(count)] * samples,
            **{name: x.flatten().tolist() for name, x in values.items()},
        }
    return result


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: if there is none.
    """
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {shown(name)}")
    return PROTOCOLS[name]


def _whole(dataset: ObjectDataset) -> ObjectDataset | None:
    """The images as they were before they were resized, if they have masks to compare."""
    first = dataset.__getitems__([0])
    return None if first.mask is None else dataset.before_resizing()


def _require_numbers(protocol: Protocol, **numbers: int) -> None:
    for name, value in numbers.items():
        if fit(name, value, int) < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    images, samples = numbers["images"], numbers["samples"]
    if protocol.images is not None and (images, samples) != (protocol.images, 1):
        raise ValueError(
            f"protocol {protocol.name}: expected {protocol.images} images and 1 sample, "
            f"got {images} and {samples}"
        )


def _measured(
    measurement: Measurement, batches: list[range], progress: bool, rank: int, processes: int
) -> dict[str, Tensor]:
    """Every number of the images of all batches, name -> [samples, images]."""
    failure: Exception | None = None
    measured: list[dict[str, Tensor]] = []
    show = progress and rank == 0
    try:
        with evaluating(measurement.model):
            for indices in tracked(batches[rank::processes], "measuring", "batch", show=show):
                measured.append(measurement.of(indices))
    except (ValueError, ArithmeticError) as error:
        if processes == 1:
            raise
        failure = error
    if processes > 1:
        measured = _gathered(failure or measured, len(batches), processes)
    return {name: torch.cat([b[name] for b in measured], dim=1) for name in measured[0]}


def _rank_and_processes(sharded: bool) -> tuple[int, int]:
    """This process's rank and the number of processes that share the work."""
    if not sharded or not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _gathered(own: Share, batches: int, processes: int) -> list[dict[str, Tensor]]:
    """All batches in order: the process of rank r has measured r, r + processes, ...

    Raises:
        ValueError, ArithmeticError: in every process, if one of them has failed.
    """
    shares: list[Any] = [None] * processes
    distributed.all_gather_object(shares, own)
    for share in shares:
        if isinstance(share, Exception):
            raise share
    return [shares[batch % processes][batch // processes] for batch in range(batches)]


def _summary(name: str, values: Tensor) -> Summary:
    if name not in SOMETIMES_UNDEFINED and not values.isfinite().all():
        image = int((~values.isfinite()).nonzero()[0])
        found = float(values[image])
        raise ValueError(f"{name}: expected a number for each image, got {found} for image {image}")
    return summarise(values)


def _or_configured(model: ObjectCentricModel, name: str, value: int | None) -> int | None:
    return getattr(model.config, name, None) if value is None else value


def _notes(
    measurement: Measurement, requested: int, count: int, metrics: dict[str, Summary]
) -> list[str]:
    name, notes = measurement.dataset.name, []
    if count < requested:
        notes.append(f"{name} has {count} images, fewer than the {requested} to measure")
    if "ari" not in metrics:
        notes.append(f"{name} has no masks: no segmentation metrics")
    elif measurement.attention and f"{FROM_ATTENTION}ari" not in metrics:
        notes.append(f"{measurement.model.name} has no attention maps")
    undefined: dict[float, list[str]] = {}
    for metric, summary in metrics.items():
        if summary["excluded"]:
            undefined.setdefault(summary["excluded"], []).append(metric)
    for excluded, (first, *others) in undefined.items():
        also = f"; nor is {', '.join(others)}" if others else ""
        notes.append(f"{first} is not defined for {excluded} images, left out{also}")
    return notes
