"""Numbers of each image: its segmentation, its reconstruction, the terms of its loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from emorl.data import Batch
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
    true: Tensor | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Every number of every image, name -> [B].

    Args:
        batch: the images.
        objective: their loss and decomposition.
        attention: of the last layer, [B, K, H, W], to be scored like masks.
        true: label maps [B, H', W'] to compare with, of the images before they were resized:
            masks are then resized to that size. None for the batch's own.
        perceptual: a distance of images and reconstructions, for "lpips".
    """
    decomposition = objective.decomposition
    values = {}
    if batch.mask is not None:
        whole = batch.mask[:, 0] if true is None else true
        values.update(segmentation_scores(whole, decomposition.masks[:, :, 0]))
        if attention is not None:
            scores = segmentation_scores(whole, attention)
            values.update({f"{FROM_ATTENTION}{name}": x for name, x in scores.items()})
    image = batch.image.to(decomposition.reconstruction.dtype) / 255
    values["mse"] = mean_squared_error(image, decomposition.reconstruction)
    if batch.mask is not None:
        values["fg_mse"] = mean_squared_error(
            image, decomposition.reconstruction, objects=batch.mask
        )
    if perceptual is not None:
        values["lpips"] = perceptual(image, decomposition.reconstruction)
    last = {"nll": objective.nll_per_image, "kl": objective.kl_per_image}
    return {**values, **last, **objective.terms}


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
    from PIL import Image

    flat = masks.detach().float().cpu().flatten(0, 1).numpy()
    resized = [
        np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.BICUBIC))
        for mask in flat
    ]
    whole = torch.from_numpy(np.stack(resized)).unflatten(0, masks.shape[:2])
    return whole.argmax(dim=1).to(masks.device)
