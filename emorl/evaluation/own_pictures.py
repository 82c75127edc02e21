"""Segmenting picture files with a model: `emorl segment`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from emorl.data.readers.pictures import read_colours, read_header, require_bright
from emorl.data.values import PixelValues
from emorl.data.values import value_range as as_range
from emorl.evaluation.measuring import evaluating, noise_for
from emorl.evaluation.per_image import labels_at
from emorl.fields import fit
from emorl.models import Decomposition, ObjectCentricModel
from emorl.terminal import tracked


@dataclass(frozen=True)
class Segmented:
    """A picture and what a model makes of it.

    Attributes:
        path: of the file.
        image: uint8 [H, W, 3].
        labels: the slot of each pixel, int64 [H, W].
    """

    path: Path
    image: NDArray[np.uint8]
    labels: NDArray[np.int64]


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
        batch_size: pictures at a time.
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
    for start in tracked(range(0, len(paths), batch_size), "segmenting", "batch"):
        indices = range(start, min(start + batch_size, len(paths)))
        read = {index: _read(paths[index], told) for index in indices}
        pictures = {i: x for i, x in read.items() if not isinstance(x, ValueError)}
        masks = {}
        if pictures:
            found = _masks(model, pictures, num_slots, refinement_steps, seed)
            masks = dict(zip(pictures, found, strict=True))
        for index, picture in read.items():
            if isinstance(picture, ValueError):
                yield picture
            else:
                labels = labels_at(masks[index][None], (picture.shape[0], picture.shape[1]))
                yield Segmented(paths[index], picture, labels[0].cpu().numpy())


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
) -> torch.Tensor:
    """Masks of pictures at the model's size, [B, K, h, w]; their numbers are those of the noise."""
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
    return decomposition.masks[:, :, 0]
