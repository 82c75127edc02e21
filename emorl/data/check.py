"""Checks of a data set before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from emorl.data.base import UNBOUNDED, Batch, ObjectDataset
from emorl.data.generators.tetromino_shapes import FRAME, render
from emorl.data.open import GENERATORS, is_hdf5, open_dataset
from emorl.data.readers.base import FileDataset
from emorl.paths import local

_BATCH = 32


def check(
    spec: str | Path, images: int | None = 1000, *, value_range: Sequence[float] | None = None
) -> str:
    """Describe a data set and list its faults, from its first images.

    Args:
        spec: as `open_dataset` takes it; every split of an HDF5 file is checked.
        images: how many images to read of each split; None reads all.
        value_range: as `open_dataset` takes it.

    Returns:
        A few lines per split; the last says "problems: none" or lists them with counts.

    Raises:
        ValueError: if the data set cannot be opened or read, an image is not in its range of
            values, `images` is less than 1, or all of an endless generator are asked for.
    """
    if images is not None and images < 1:
        raise ValueError(f"check: expected at least 1 image, got {images}")
    found = ["train"]
    if spec not in GENERATORS and local(spec).is_file() and is_hdf5(local(spec)):
        from emorl.data.readers.hdf5 import splits

        found = splits(local(spec)) or found
    reports = []
    for split in found:
        dataset = open_dataset(spec, split=split, value_range=value_range)
        reports.append(_report(dataset, len(dataset) if images is None else images))
    if len(found) == 1:
        return reports[0]
    return "\n\n".join(f"{s}:\n{report}" for s, report in zip(found, reports, strict=True))


def _report(dataset: ObjectDataset, images: int) -> str:
    if images >= UNBOUNDED:
        raise ValueError(f"check: expected a number of images, since {dataset.name} has no end")
    problems: Counter[str] = Counter()
    objects: Counter[int] = Counter()
    low, high, count = 255, 0, 0
    factors: dict[str, Tensor] = {}
    for batch, entity_masks in _read(dataset, images):
        count += len(batch)
        low, high = min(low, int(batch.image.min())), max(high, int(batch.image.max()))
        factors = batch.factors
        if batch.mask is not None:
            objects.update((_pixels(batch.mask)[:, 1:] > 0).sum(1).tolist())
        for problem, images_with_it in _problems(batch, entity_masks).items():
            problems[problem] += images_with_it
    height, width = dataset.image_size
    histogram = ", ".join(f"{n} in {objects[n]} images" for n in sorted(objects))
    named = ", ".join(f"{name} {list(value.shape[1:])}" for name, value in factors.items())
    listed = [f"  {problem}: {n} of {count} images" for problem, n in problems.items() if n]
    return "\n".join(
        [
            f"{dataset.name}: {_size(dataset)}, {height}x{width} pixels; checked {count}",
            f"values: {low} to {high}{_meaning(dataset)}",
            f"objects: {histogram or 'no masks'}",
            f"factors: {named or 'none'}",
            *([f"slow: {dataset.slow}"] if dataset.slow else []),
            "problems:" if listed else "problems: none",
            *listed,
        ]
    )


def _read(dataset: ObjectDataset, images: int) -> Iterator[tuple[Batch, Tensor | None]]:
    """The first images in batches, with the masks as stored if it is a file."""
    images = dataset.count(images)
    for start in range(0, images, _BATCH):
        indices = range(start, min(start + _BATCH, images))
        if isinstance(dataset, FileDataset):
            yield dataset.read(indices)
        else:
            yield dataset.__getitems__(indices), None


def _problems(batch: Batch, entity_masks: Tensor | None) -> dict[str, int]:
    """Problem -> number of images that have it."""
    colours = batch.image.flatten(2)
    wrong = {"a single colour": (colours == colours[..., :1]).all(2).all(1)}
    for name, values in batch.factors.items():
        wrong[f"factor {name} is not finite"] = ~values.isfinite().flatten(1).all(1)
    if batch.mask is not None and "visibility" in batch.factors:
        visible = batch.factors["visibility"] > 0
        labelled = _pixels(batch.mask) > 0
        entities = visible.shape[1]
        wrong["labels beyond the entities of the factors"] = labelled[:, entities:].any(1)
        labelled = labelled[:, :entities]
        wrong["a visible object without a pixel"] = (visible & ~labelled)[:, 1:].any(1)
        wrong["pixels of an object that is not visible"] = (~visible & labelled)[:, 1:].any(1)
    if entity_masks is not None:
        covering = (entity_masks > entity_masks.max() / 2).sum(1).flatten(1)
        wrong["pixels that no mask covers"] = (covering == 0).any(1)
        wrong["pixels that several masks cover"] = (covering > 1).any(1)
    if batch.image.shape[-1] == FRAME and {"shape", "x", "y", "color"} <= batch.factors.keys():
        wrong["not what its factors render to"] = _differs_from_render(batch)
    return {problem: int(images.sum()) for problem, images in wrong.items()}


def _differs_from_render(batch: Batch) -> Tensor:
    """Which images or label maps of Tetrominoes differ from their factors' rendering, bool [B]."""
    try:
        image, mask = render(batch.factors)
    except ValueError:
        return torch.ones(len(batch), dtype=torch.bool)
    same = (image == batch.image).flatten(1).all(1)
    return ~(same if batch.mask is None else same & (mask == batch.mask).flatten(1).all(1))


def _pixels(mask: Tensor) -> Tensor:
    """How many pixels have each of the 256 labels, [B, 256]."""
    labels = mask.flatten(1).long()
    counts = torch.zeros(len(mask), 256, dtype=torch.int64)
    return counts.scatter_add_(1, labels, torch.ones_like(labels))


def _meaning(dataset: ObjectDataset) -> str:
    """How the values of a file were understood."""
    return f"; the file's are {dataset.values}" if isinstance(dataset, FileDataset) else ""


def _size(dataset: ObjectDataset) -> str:
    from emorl.data.readers.tfrecord import TFRecordDataset

    if isinstance(dataset, TFRecordDataset) and not dataset.in_memory:
        return "large file (images not counted)"
    return "endless" if len(dataset) >= UNBOUNDED else f"{len(dataset)} images"
