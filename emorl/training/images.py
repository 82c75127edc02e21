"""The data sets of a run: the one to train on, and the images that training never sees."""

from __future__ import annotations

import torch

from emorl.data import ObjectDataset, open_dataset
from emorl.training.config import DataConfig


def training_images(data: DataConfig, device: torch.device | str = "cpu") -> ObjectDataset:
    """The images to train on; `device` is where a generator makes them."""
    return _open(data, data.train, data.split, device, data.limit)


def held_out_images(
    data: DataConfig, split: str = "val", device: torch.device | str = "cpu"
) -> ObjectDataset | None:
    """Images that training never sees, cropped and resized as in training.

    `data.held_out` if there is one, else another split of the training data. None if that has no
    such split, or gives the training images whatever the split.

    Raises:
        ValueError: if `data.held_out` or `data.train` cannot be opened.
    """
    if data.held_out is not None:
        return _first_split(data, data.held_out, device)
    train = training_images(data, device)
    try:
        held_out = _open(data, data.train, split, device)
    except ValueError:
        return None
    same = torch.equal(train.__getitems__([0]).image, held_out.__getitems__([0]).image)
    return None if same else held_out


def _first_split(data: DataConfig, spec: str, device: torch.device | str) -> ObjectDataset:
    """A file of its own may call its only split anything."""
    errors = []
    for split in ("test", "val", "train"):
        try:
            return _open(data, spec, split, device)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _open(
    data: DataConfig, spec: str, split: str, device: torch.device | str, limit: int | None = None
) -> ObjectDataset:
    return open_dataset(
        spec,
        split=split,
        seed=data.seed,
        limit=limit,
        crop=data.crop,
        size=data.size,
        device=device,
    )
