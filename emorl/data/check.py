"""Checks of a data set before training."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from emorl.data.base import UNBOUNDED, Batch, ObjectDataset
from emorl.data.open import GENERATORS, is_hdf5, open_dataset, open_folder
from emorl.data.problems import OVERLAPPING, UNCOVERED, cure, hidden, objects, pixels, problems
from emorl.data.questions import answers
from emorl.data.readers.base import FileDataset
from emorl.data.splits import ALL
from emorl.fields import escaped
from emorl.paths import local

_BATCH = 32
_TIMED = 64  # images whose reading is timed
_NAMED = 100  # images that cannot be read


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
        A few lines per group; the last says "problems: none" or lists them with counts, and by
        name the images that cannot be read, which are left out of the rest. Where other groups
        can be checked, one line of a group that cannot.

    Raises:
        ValueError: if the data set, or each group, cannot be opened or has no image that can be
            read, `images` is less than 1, all of an endless generator are asked for, or a crop or
            size of a file, which is checked as it is stored.
    """
    return checked(spec, images, value_range=value_range, crop=crop, size=size).report


class Checked(NamedTuple):
    """What a check found.

    Attributes:
        report: as `check` returns it.
        is_readable: whether all images that were looked at can be read.
    """

    report: str
    is_readable: bool


def checked(
    spec: str | Path,
    images: int | None = 1000,
    *,
    value_range: Sequence[float] | None = None,
    crop: str | Sequence[int] | None = None,
    size: int | Sequence[int] | None = None,
) -> Checked:
    """What `check` finds; arguments and errors are its."""
    if images is not None and images < 1:
        raise ValueError(f"check: expected at least 1 image, got {images}")
    groups: list[Checked] = []
    wrong: list[str] = []
    found = splits_of(spec)
    for split in found:
        try:
            dataset = open_checked(spec, split, value_range=value_range, crop=crop, size=size)
            groups.append(_report(dataset, len(dataset) if images is None else images))
        except ValueError as error:
            wrong.append(str(error))  # the error itself would keep the file open
            groups.append(Checked(escaped(f"cannot be checked: {error}"), is_readable=False))
    if len(wrong) == len(found):
        raise ValueError(wrong[0])
    if len(found) == 1:
        return groups[0]
    named = (f"{escaped(s)}:\n{group.report}" for s, group in zip(found, groups, strict=True))
    return Checked("\n\n".join(named), all(group.is_readable for group in groups))


def open_checked(
    spec: str | Path,
    split: str,
    *,
    value_range: Sequence[float] | None,
    crop: str | Sequence[int] | None,
    size: int | Sequence[int] | None,
) -> ObjectDataset:
    """The images to check; a folder's pictures that cannot be used are left for when they are read.

    Raises:
        ValueError: as `check` does.
    """
    if spec not in GENERATORS and local(spec).is_dir():
        return open_folder(local(spec), split, crop, size, value_range, lenient=True)
    if (crop, size) != (None, None) and spec not in GENERATORS:
        raise ValueError(
            f"check: expected crop and size for a folder or a generator alone, got {spec}, "
            "which is checked as it is stored"
        )
    return open_dataset(spec, split=split, value_range=value_range, crop=crop, size=size)


def readable(dataset: ObjectDataset, wanted: int) -> list[int]:
    """The places of the first images that can be read."""
    found: list[int] = []
    indices = range(dataset.count(wanted))
    while indices and len(found) < wanted:
        unread: dict[int, str] = {}
        for _ in _read(dataset, indices, unread):
            pass
        found += [index for index in indices if index not in unread]
        indices = range(indices.stop, dataset.count(indices.stop + wanted))
    return found[:wanted]


def splits_of(spec: str | Path) -> list[str]:
    """The splits that hold all images of a data set: an HDF5 file's groups, else one."""
    if spec in GENERATORS:
        return ["train"]
    if local(spec).is_file() and is_hdf5(local(spec)):
        from emorl.data.readers.hdf5 import splits

        return splits(local(spec)) or [ALL]
    return [ALL]


@dataclass
class _Found:
    """What the first images are like.

    Attributes:
        read: the places of those that could be read.
        unread: of the others, why they could not.
        lowest, highest: values of pixels.
        objects: how many each image has.
        hidden: images with an object that has no pixel.
        problems: how many images have each.
        has_entities: whether there are masks of each entity.
        factors: by name, of all images, [N, E] or [N, E, n].
        labels: pixels of each label, as `pixels` counts them, [N, L]; None without masks.
    """

    read: list[int] = field(default_factory=list)
    unread: dict[int, str] = field(default_factory=dict)
    lowest: int = 255
    highest: int = 0
    objects: list[int] = field(default_factory=list)
    hidden: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    has_entities: bool = False
    factors: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None


def _look(dataset: ObjectDataset, images: int) -> _Found:
    """Read the first images.

    Raises:
        ValueError: if none can be read.
    """
    found = _Found()
    factors: dict[str, list[Tensor]] = {}
    counted: list[Tensor] = []
    images = dataset.count(images)
    for start in range(0, images, _BATCH):
        indices = range(start, min(start + _BATCH, images))
        for batch, entity_masks in _read(dataset, indices, found.unread):
            found.lowest = min(found.lowest, int(batch.image.min()))
            found.highest = max(found.highest, int(batch.image.max()))
            found.hidden += hidden(batch)
            found.problems.update(problems(batch, entity_masks))
            found.has_entities |= entity_masks is not None
            for name, values in batch.factors.items():
                factors.setdefault(name, []).append(values)
            if batch.mask is not None:
                found.objects += objects(batch.mask)
                counted.append(pixels(batch.mask))
    found.read = [index for index in range(images) if index not in found.unread]
    if not found.read:
        raise ValueError(found.unread[0])
    found.factors = {name: torch.cat(parts) for name, parts in factors.items()}
    found.labels = torch.cat(counted) if counted else None
    return found


def _report(dataset: ObjectDataset, images: int) -> Checked:
    if images >= UNBOUNDED:
        raise ValueError(f"check: expected a number of images, since {dataset.name} has no end")
    found = _look(dataset, images)
    height, width = dataset.image_size
    named = ", ".join(f"{name} {list(value.shape[1:])}" for name, value in found.factors.items())
    stored = dataset if isinstance(dataset, FileDataset) else None
    asked = [
        *(stored.answers() if stored else []),
        *answers(found.factors, found.labels, dataset.image_size),
    ]
    listed = [
        *(
            f"  {problem}: {n} of {_images(len(found.read))}; {cure(problem)}"
            for problem, n in found.problems.items()
            if n
        ),
        *_unreadable(found),
    ]
    lines = [
        f"{dataset.name}: {_size(dataset)}, {height}x{width} pixels; checked {len(found.read)}",
        *(stored.describe() if stored else []),
        f"values: {found.lowest} to {found.highest}{_meaning(dataset)}",
        f"objects: {_histogram(found)}",
        *_hidden(found),
        f"masks: {_masks(found)}",
        f"factors: {named or 'none'}",
        f"speed: {_speed(dataset, found.read)}",
        *([f"slow: {dataset.slow}"] if dataset.slow else []),
        *(["as published?", *(f"  {answer}" for answer in asked)] if asked else []),
        "problems:" if listed else "problems: none",
        *listed,
    ]
    return Checked("\n".join(map(escaped, lines)), is_readable=not found.unread)


def _histogram(found: _Found) -> str:
    """How many images have how many objects."""
    if found.labels is None:
        return "no masks"
    images = Counter(found.objects)
    shown = ", ".join(f"{n} in {_images(images[n])}" for n in sorted(images))
    return f"{shown} (with a pixel or more)"


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def _read(
    dataset: ObjectDataset, indices: Sequence[int], unread: dict[int, str]
) -> Iterator[tuple[Batch, Tensor | None]]:
    """Images in one batch; where some cannot be read, those that can in one each."""
    if not isinstance(dataset, FileDataset):
        yield dataset.__getitems__(indices), None
        return
    try:
        yield dataset.read(indices)
    except ValueError as error:
        if len(indices) == 1:
            unread[indices[0]] = str(error)
        else:
            for index in indices:
                yield from _read(dataset, [index], unread)


def _hidden(found: _Found) -> list[str]:
    """A line about objects that are there without a pixel, if there are some."""
    if not found.hidden:
        return []
    return [
        f"hidden: an object or more in {_images(found.hidden)}, by their visibility, "
        "which --max-objects counts"
    ]


def _unreadable(found: _Found) -> list[str]:
    """The images that cannot be read, by name."""
    if not found.unread:
        return []
    images = _images(len(found.read) + len(found.unread))
    heading = f"  cannot be read: {len(found.unread)} of {images}; mend or remove:"
    reasons = [f"    {reason}" for reason in found.unread.values()]
    more = [f"    and {len(reasons) - _NAMED} more"] if len(reasons) > _NAMED else []
    return [heading, *reasons[:_NAMED], *more]


def _speed(dataset: ObjectDataset, readable: Sequence[int]) -> str:
    """Images per second, read one by one in the data set's and in random order."""
    ordered = readable[:_TIMED]
    rates = []
    for indices in (ordered, random.Random(0).sample(ordered, len(ordered))):
        begin = time.perf_counter()
        for index in indices:
            dataset.read_images([index])
        rates.append(len(ordered) / (time.perf_counter() - begin))
    return f"{rates[0]:.3g} images/s one by one, {rates[1]:.3g} in random order"


def _masks(found: _Found) -> str:
    """What kind of masks there are, and whether they divide each image."""
    if found.labels is None:
        return "none"
    if not found.has_entities:
        return "a label for each pixel"
    wrong = [name for name in (UNCOVERED, OVERLAPPING) if found.problems[name]]
    return f"FAIL, {' and '.join(wrong)}" if wrong else "PASS, they cover each pixel once"


def _meaning(dataset: ObjectDataset) -> str:
    """How the values of a file were understood."""
    return f"; the file's are {dataset.values}" if isinstance(dataset, FileDataset) else ""


def _size(dataset: ObjectDataset) -> str:
    from emorl.data.readers.tfrecord import TFRecordDataset

    if isinstance(dataset, TFRecordDataset) and not dataset.in_memory:
        return "large file (images not counted)"
    return "endless" if len(dataset) >= UNBOUNDED else _images(len(dataset))
