"""The data sets of a run: the one to train on, and the images that training never sees."""

from __future__ import annotations

import dataclasses
import os

import torch

from emorl.data import GENERATORS, ObjectDataset, open_dataset
from emorl.data.check import splits_of
from emorl.data.open import data_files
from emorl.data.splits import ALL
from emorl.paths import local
from emorl.training.config import DataConfig

_COMPARED = 32  # first images, by which two data sets are told apart


def training_images(data: DataConfig, device: torch.device | str = "cpu") -> ObjectDataset:
    """The images to train on; `device` is where a generator makes them."""
    return _open(data, data.train, data.split, device, data.limit)


def held_out_images(
    data: DataConfig, split: str | None = None, device: torch.device | str = "cpu"
) -> ObjectDataset | None:
    """Images that training never sees, cropped and resized as in training.

    `data.held_out` if there is one, else another split of the training data. None if that has no
    such split, or gives the training images whatever the split, or if all of its images are trained
    on.

    Args:
        data: of a run.
        split: the one that is asked for; None for that of `usual_split`, else of the training data
            "val".
        device: where a generator makes the images.

    Raises:
        ValueError: if `data.held_out` or `data.train` cannot be opened, or `data.held_out` has no
            such split.
    """
    if data.held_out is not None:
        return _open(data, data.held_out, split or usual_split(data.held_out), device)
    if data.split == ALL:
        return None
    train = training_images(data, device)
    try:
        held_out = _open(data, data.train, split or "val", device)
    except ValueError:
        return None
    return None if same_images(train, held_out) else held_out


def usual_split(spec: str) -> str:
    """What is measured of held-out data where no split is asked for.

    Of a folder all pictures; of a file with groups, test or val or the only one; else test.

    Raises:
        ValueError: if a file has several groups, and neither of those; it names them.
    """
    if spec in GENERATORS:
        return "test"
    if local(spec).is_dir():
        return ALL
    splits = splits_of(spec)
    if splits == [ALL]:  # no groups
        return "test"
    usual = [name for name in ("test", "val") if name in splits]
    if not usual and len(splits) > 1:
        raise ValueError(
            f"{spec}: expected a group test or val, or a single one, got {', '.join(splits)}; "
            "--split of emorl evaluate chooses another"
        )
    return [*usual, *splits][0]


def has_masks(images: ObjectDataset) -> bool:
    """Whether images come with label maps, as the first tells."""
    return images.__getitems__([0]).mask is not None


def require_files(data: DataConfig) -> None:
    """Refuse data that are not there, before anything is opened.

    Raises:
        ValueError: naming the file.
    """
    for spec in (data.train, data.held_out):
        if spec is not None and spec not in GENERATORS:
            data_files(absolute(spec))


def require_image_size(images: ObjectDataset, network: tuple[int, int]) -> None:
    """Refuse images of another size than the network is to have.

    A network that takes any size would be trained at theirs, and used at its own later.

    Raises:
        ValueError: with both sizes, and the setting that resizes the images.
    """
    if images.image_size != network:
        raise ValueError(
            f"network.image_size: expected {[*images.image_size]}, the images' size, got "
            f"{[*network]}; data.size {[*network]} resizes the images"
        )


def holds_out_some_trained_on(
    data: DataConfig, images: ObjectDataset, held_out: ObjectDataset
) -> bool:
    """Whether held-out images are among those that are trained on, as far as is known."""
    every_split = data.split == ALL and data.held_out == data.train
    return every_split or same_images(images, held_out)


def same_images(first: ObjectDataset, second: ObjectDataset) -> bool:
    """Whether two data sets begin with the same images."""
    if first.image_size != second.image_size:
        return False
    indices = range(min(first.count(_COMPARED), second.count(_COMPARED)))
    pictures = [dataset.__getitems__(indices).image for dataset in (first, second)]
    return torch.equal(*pictures)


def with_absolute_paths(data: DataConfig) -> DataConfig:
    """The same data, found from any folder."""
    return dataclasses.replace(
        data,
        train=absolute(data.train),
        held_out=None if data.held_out is None else absolute(data.held_out),
    )


def with_decided_ranges(
    data: DataConfig, train: ObjectDataset, held_out: ObjectDataset | None
) -> DataConfig:
    """The same data with the ranges of values that their files were opened with."""
    own = None if data.held_out is None or held_out is None else held_out.value_range
    return dataclasses.replace(data, value_range=train.value_range, held_out_value_range=own)


def with_earlier_ranges(data: DataConfig, before: DataConfig) -> DataConfig:
    """The same data with the ranges that a run has decided before, where none are asked for."""
    train = before.value_range if data.train == before.train else None
    own = before.held_out_value_range if data.held_out == before.held_out else None
    return dataclasses.replace(
        data,
        value_range=data.value_range or train,
        held_out_value_range=data.held_out_value_range or own,
    )


def absolute(spec: str) -> str:
    """A generator's name as it is, a file's path from the root."""
    return spec if spec in GENERATORS else os.path.abspath(local(spec))


def _open(
    data: DataConfig, spec: str, split: str, device: torch.device | str, limit: int | None = None
) -> ObjectDataset:
    asked = data.value_range
    if spec == data.held_out and spec != data.train:
        asked = data.held_out_value_range or (None if spec in GENERATORS else asked)
    return open_dataset(
        spec,
        split=split,
        seed=data.seed,
        limit=limit,
        max_objects=None if spec in GENERATORS else data.max_objects,
        crop=data.crop,
        size=data.size,
        value_range=asked,
        device=device,
    )
