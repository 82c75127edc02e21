"""Numbers of each image: its segmentation, its reconstruction, the terms of its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emorl.data import Batch
from emorl.fields import shown
from emorl.metrics import (
    adjusted_rand_index,
    mean_best_overlap,
    mean_iou,
    mean_squared_error,
    segmentation_covering,
)
from emorl.models import Objective

_SEGMENTATION = {
    "ari": adjusted_rand_index,
    "miou": mean_iou,
    "mbo": mean_best_overlap,
    "sc": segmentation_covering,
}
FROM_ATTENTION = "attention_"
"""What the names of metrics of attention maps begin with; all others take the decoder's masks."""
MASKS = "of the decoder, as they mix the reconstruction; attention_*: the last attention's"
SOMETIMES_UNDEFINED = {  # of an image without objects, say
    *(
        f"{source}{prefix}{name}"
        for source in ("", FROM_ATTENTION)
        for prefix in ("fg_", "")
        for name in _SEGMENTATION
    ),
    "fg_mse",
}


def numbers_of(
    batch: Batch,
    objective: Objective,
    *,
    attention: Tensor | None = None,
    whole: Iterable[Tensor] | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Every number of every image, name -> [B].

    Args:
        batch: the images.
        objective: their loss and decomposition.
        attention: of the last layer, [B, K, H, W], to be scored like masks.
        whole: a label map [H', W'] of each image to compare with, as it was before it was resized:
            masks are then resized to that size, one image after the other, since these maps can be
            large. None for the batch's own.
        perceptual: a distance of images and reconstructions, for "lpips".
    """
    decomposition = objective.decomposition
    image = batch.image.to(decomposition.reconstruction.dtype) / 255
    values = {}
    if batch.mask is not None:
        masks = {"": decomposition.masks[:, :, 0]}
        if attention is not None:
            masks[FROM_ATTENTION] = attention
        if whole is None:
            values = _scores(batch.mask[:, 0], masks)
        else:
            values = _joined(
                _scores(
                    true[None].to(image.device), {name: x[row, None] for name, x in masks.items()}
                )
                for row, true in enumerate(whole)
            )
    values["mse"] = mean_squared_error(image, decomposition.reconstruction)
    if batch.mask is not None:
        values["fg_mse"] = mean_squared_error(
            image, decomposition.reconstruction, objects=batch.mask
        )
    if perceptual is not None:
        values["lpips"] = _one_each(perceptual(image, decomposition.reconstruction), len(image))
    last = {"nll": objective.nll_per_image, "kl": objective.kl_per_image}
    return {**values, **last, **objective.terms}


def _one_each(values: Tensor, images: int) -> Tensor:
    """The numbers of a distance, which must be one of each image."""
    if not isinstance(values, Tensor) or values.shape != (images,):
        got = [*values.shape] if isinstance(values, Tensor) else shown(values)
        raise ValueError(f"perceptual: expected a tensor [{images}], one of each image, got {got}")
    return values


def _scores(true: Tensor, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores of masks by what their names begin with."""
    return {
        f"{prefix}{name}": values
        for prefix, own in masks.items()
        for name, values in segmentation_scores(true, own).items()
    }


def _joined(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    rows = [*parts]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def segmentation_scores(true: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Every score of a segmentation, with all segments and ("fg_") with the objects alone.

    Args:
        true: label maps, [B, H', W'].
        masks: of each slot, [B, K, H, W]; the largest wins a pixel.

    Returns:
        Name -> float64 [B].
    """
    predicted = labels_at(masks, (true.shape[1], true.shape[2]))
    return {
        f"{prefix}{name}": score(true.long(), predicted, foreground_only=foreground)
        for prefix, foreground in (("fg_", True), ("", False))
        for name, score in _SEGMENTATION.items()
    }


def labels_at(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """The slot of each pixel of an image of another size, int64 [B, *size].

    Masks are resized before the largest is taken, bicubically by Pillow, as in the published
    evaluation.

    Args:
        masks: [B, K, H, W].
        size: height and width.
    """
    if tuple(masks.shape[-2:]) == size:
        return masks.argmax(dim=1)
    small = masks.detach().float().cpu().numpy()
    labels = np.stack([largest_at(own, size) for own in small])
    return torch.from_numpy(labels).long().to(masks.device)


def largest_at(masks: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.integer[Any]]:
    """The first of the largest masks of an image, at each pixel, as `labels_at`.

    One slot after the other: enlarged, all of them would be large.

    Args:
        masks: [K, h, w].
        size: height and width.

    Returns:
        [*size]; uint8, or int32 of more than 256 slots.
    """
    from PIL import Image

    largest = np.full(size, -np.inf, dtype=np.float32)
    labels = np.zeros(size, dtype=np.uint8 if len(masks) <= 256 else np.int32)
    for slot, mask in enumerate(masks):
        image = Image.fromarray(mask)
        resized = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        is_larger = resized > largest
        np.copyto(labels, slot, where=is_larger)
        np.copyto(largest, resized, where=is_larger)
    return labels
