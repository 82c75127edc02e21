"""Checks of a data set before training."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from emorl.data.base import UNBOUNDED, Batch, ObjectDataset
from emorl.data.open import GENERATORS, is_hdf5, open_dataset
from emorl.data.problems import OVERLAPPING, UNCOVERED, cure, hidden, pixels, problems
from emorl.data.questions import answers
from emorl.data.readers.base import FileDataset
from emorl.data.splits import ALL
from emorl.paths import local

_BATCH = 32
_TIMED = 64  # images whose reading is timed


def check(
    spec: str | Path,
    images: int | None = 1000,
    *,
    value_range: Sequence[float] | None = None,
    crop: str | Sequence[int] | None = None,
    size: int | Sequence[int] | None = None,
) -> str:
    """Describe a data set and list its faults, from its first images.

    Args:
        spec: as `open_dataset` takes it; of an HDF5 file with groups each is checked, of other
            data all images, whatever splits they are divided into.
        images: how many images to read, of each group; None reads all.
        value_range: as `open_dataset` takes it.
        crop: as `open_dataset` takes it; of a folder or a generator.
        size: likewise.

    Returns:
        A few lines per group; the last says "problems: none" or lists them with counts.

    Raises:
        ValueError: if the data set cannot be opened or read, an image is not in its range of
            values, `images` is less than 1, all of an endless generator are asked for, or a crop
            or size of a file, which is checked as it is stored.
    """
    if images is not None and images < 1:
        raise ValueError(f"check: expected at least 1 image, got {images}")
    if (crop, size) != (None, None) and spec not in GENERATORS and not local(spec).is_dir():
        raise ValueError(
            f"check: expected crop and size for a folder or a generator alone, got {spec}, "
            "which is checked as it is stored"
        )
    reports = []
    found = splits_of(spec)
    for split in found:
        dataset = open_dataset(spec, split=split, value_range=value_range, crop=crop, size=size)
        reports.append(_report(dataset, len(dataset) if images is None else images))
    if len(found) == 1:
        return reports[0]
    return "\n\n".join(f"{s}:\n{report}" for s, report in zip(found, reports, strict=True))


def splits_of(spec: str | Path) -> list[str]:
    """The splits that hold all images of a data set: an HDF5 file's groups, else one."""
    if spec in GENERATORS:
        return ["train"]
    if local(spec).is_file() and is_hdf5(local(spec)):
        from emorl.data.readers.hdf5 import splits

        return splits(local(spec)) or [ALL]
    return [ALL]


def _report(dataset: ObjectDataset, images: int) -> str:
    if images >= UNBOUNDED:
        raise ValueError(f"check: expected a number of images, since {dataset.name} has no end")
    found: Counter[str] = Counter()
    low, high, count, unseen = 255, 0, 0, 0
    factors: dict[str, list[Tensor]] = {}
    counted: list[Tensor] = []
    kinds: list[tuple[bool, bool]] = []
    for batch, entity_masks in _read(dataset, images):
        count += len(batch)
        low, high = min(low, int(batch.image.min())), max(high, int(batch.image.max()))
        unseen += hidden(batch)
        kinds.append((batch.mask is not None, entity_masks is not None))
        for name, values in batch.factors.items():
            factors.setdefault(name, []).append(values)
        if batch.mask is not None:
            counted.append(pixels(batch.mask))
        for problem, images_with_it in problems(batch, entity_masks).items():
            found[problem] += images_with_it
    together = {name: torch.cat(parts) for name, parts in factors.items()}
    labels = _stacked(counted) if counted else None
    height, width = dataset.image_size
    named = ", ".join(f"{name} {list(value.shape[1:])}" for name, value in together.items())
    stored = dataset if isinstance(dataset, FileDataset) else None
    asked = [*(stored.answers() if stored else []), *answers(together, labels, dataset.image_size)]
    listed = [
        f"  {problem}: {n} of {count} images; {cure(problem)}" for problem, n in found.items() if n
    ]
    return "\n".join(
        [
            f"{dataset.name}: {_size(dataset)}, {height}x{width} pixels; checked {count}",
            *(stored.describe() if stored else []),
            f"values: {low} to {high}{_meaning(dataset)}",
            f"objects: {_histogram(labels)}",
            *([f"hidden: an object or more in {unseen} images"] if unseen else []),
            f"masks: {_masks(found, kinds)}",
            f"factors: {named or 'none'}",
            f"speed: {_speed(dataset, images)}",
            *([f"slow: {dataset.slow}"] if dataset.slow else []),
            *(["questions:", *(f"  {answer}" for answer in asked)] if asked else []),
            "problems:" if listed else "problems: none",
            *listed,
        ]
    )


def _histogram(labels: Tensor | None) -> str:
    """How many images have how many objects, from the pixels [N, L] of each label."""
    if labels is None:
        return "no masks"
    objects = Counter((labels[:, 1:] > 0).sum(1).tolist())
    return ", ".join(f"{n} in {objects[n]} images" for n in sorted(objects))


def _stacked(counts: Sequence[Tensor]) -> Tensor:
    """Pixels of each label of all batches, as wide as the widest."""
    widest = max(part.shape[1] for part in counts)
    return torch.cat([nn.functional.pad(part, (0, widest - part.shape[1])) for part in counts])


def _read(dataset: ObjectDataset, images: int) -> Iterator[tuple[Batch, Tensor | None]]:
    """The first images in batches, with the masks as stored if it is a file."""
    images = dataset.count(images)
    for start in range(0, images, _BATCH):
        indices = range(start, min(start + _BATCH, images))
        if isinstance(dataset, FileDataset):
            yield dataset.read(indices)
        else:
            yield dataset.__getitems__(indices), None


def _speed(dataset: ObjectDataset, images: int) -> str:
    """Images per second, read one by one in the data set's and in random order."""
    count = dataset.count(min(images, _TIMED))
    ordered = list(range(count))
    rates = []
    for indices in (ordered, random.Random(0).sample(ordered, count)):
        begin = time.perf_counter()
        for index in indices:
            dataset.read_images([index])
        rates.append(count / (time.perf_counter() - begin))
    return f"{rates[0]:.3g} images/s one by one, {rates[1]:.3g} in random order"


def _masks(problems: Counter[str], batches: Sequence[tuple[bool, bool]]) -> str:
    """What kind of masks there are, and whether they divide each image."""
    has_masks, has_entities = (any(kind) for kind in zip(*batches, strict=True))
    if not has_masks:
        return "none"
    if not has_entities:
        return "a label for each pixel"
    wrong = [name for name in (UNCOVERED, OVERLAPPING) if problems[name]]
    return f"FAIL, {' and '.join(wrong)}" if wrong else "PASS, they cover each pixel once"


def _meaning(dataset: ObjectDataset) -> str:
    """How the values of a file were understood."""
    return f"; the file's are {dataset.values}" if isinstance(dataset, FileDataset) else ""


def _size(dataset: ObjectDataset) -> str:
    from emorl.data.readers.tfrecord import TFRecordDataset

    if isinstance(dataset, TFRecordDataset) and not dataset.in_memory:
        return "large file (images not counted)"
    return "endless" if len(dataset) >= UNBOUNDED else f"{len(dataset)} images"
