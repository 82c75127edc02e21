"""Segmenting picture files with a model: `emorl segment`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from emorl.data.readers.pictures import read_colours, read_header, require_bright
from emorl.data.values import PixelValues
from emorl.data.values import value_range as as_range
from emorl.evaluation.measuring import evaluating, noise_for
from emorl.evaluation.per_image import largest_at
from emorl.fields import fit
from emorl.models import Decomposition, ObjectCentricModel
from emorl.terminal import tracked

MOST_HELD = 2**27
"""Bytes of pictures in memory from which on no further one is read before they are segmented."""


@dataclass(frozen=True)
class Segmented:
    """A picture and what a model makes of it.

    Attributes:
        path: of the file.
        image: uint8 [H, W, 3].
        labels: the slot of each pixel, [H, W]: uint8, or int32 of more than 256 slots.
    """

    path: Path
    image: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]


def segment(
    model: ObjectCentricModel,
    paths: Sequence[Path],
    *,
    num_slots: int | None = None,
    refinement_steps: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    value_range: Sequence[float] | None = None,
) -> Iterator[Segmented | ValueError]:
    """Segment pictures, each resized to the model's size, and its masks back.

    Slots are the means of their posteriors. A picture's result does not depend on the others of
    its batch.

    Args:
        model: where it is, it computes.
        paths: of the files.
        num_slots: None for the model's own number.
        refinement_steps: None for the model's own number.
        batch_size: pictures at a time; fewer where they take `MOST_HELD` together.
        seed: of the noise that slots start from.
        value_range: what the numbers mean, [0, 1] or [0, 255], if not what their format says.

    Yields:
        Each picture's result in the order of `paths`; the error of one that cannot be read.

    Raises:
        ValueError: if `value_range` is none, or `batch_size` is not positive.
    """
    if fit("batch_size", batch_size, int) < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    told = None
    if value_range is not None:
        known = as_range(value_range, "value_range")
        told = PixelValues(known, "as value_range says", told=True)
    batches = _batches(paths, told, batch_size)
    results = _results(model, paths, batches, num_slots, refinement_steps, seed)
    for _, result in zip(tracked(paths, "segmenting", "picture"), results, strict=True):
        yield result


def _results(
    model: ObjectCentricModel,
    paths: Sequence[Path],
    batches: Iterator[dict[int, NDArray[np.uint8] | ValueError]],
    num_slots: int | None,
    refinement_steps: int | None,
    seed: int,
) -> Iterator[Segmented | ValueError]:
    """The segments of each picture, or why there are none, in the order of the pictures."""
    for read in batches:
        pictures = {i: x for i, x in read.items() if not isinstance(x, ValueError)}
        masks = _masks(model, pictures, num_slots, refinement_steps, seed) if pictures else {}
        del pictures
        for index in [*read]:
            picture = read.pop(index)  # of a batch one stays in memory at most
            if isinstance(picture, ValueError):
                yield picture
            else:
                labels = largest_at(masks[index], (picture.shape[0], picture.shape[1]))
                yield Segmented(paths[index], picture, labels)


def _batches(
    paths: Sequence[Path], told: PixelValues | None, batch_size: int
) -> Iterator[dict[int, NDArray[np.uint8] | ValueError]]:
    """Pictures, or why they cannot be read, by number; fewer at a time where they are large."""
    read: dict[int, NDArray[np.uint8] | ValueError] = {}
    for index, path in enumerate(paths):
        read[index] = _read(path, told)
        held = sum(x.nbytes for x in read.values() if not isinstance(x, ValueError))
        if len(read) == batch_size or held >= MOST_HELD:
            yield read
            read = {}
    if read:
        yield read


def _read(path: Path, told: PixelValues | None) -> NDArray[np.uint8] | ValueError:
    try:
        colours = read_colours(path, told)
        if told is None and colours.max(initial=0) <= 1:
            require_bright({path: read_header(path)})
        return colours
    except ValueError as error:
        return error


@torch.no_grad()
def _masks(
    model: ObjectCentricModel,
    pictures: dict[int, NDArray[np.uint8]],
    num_slots: int | None,
    refinement_steps: int | None,
    seed: int,
) -> dict[int, NDArray[np.float32]]:
    """Masks of pictures at the model's size, [K, h, w]; their numbers are those of the noise."""
    height, width = model.config.image_size
    device = next(model.parameters()).device
    resized = [
        np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC))
        for x in pictures.values()
    ]
    images = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()
    with evaluating(model):
        decomposition: Decomposition = model(
            images.to(device),
            num_slots=num_slots,
            refinement_steps=refinement_steps,
            generator=noise_for(model, [*pictures], seed=seed, device=device, means=True),
        )
    masks = decomposition.masks[:, :, 0].float().cpu().numpy()
    return dict(zip(pictures, masks, strict=True))
