"""What can be wrong with the images of a data set, and what is done about it."""

from __future__ import annotations

import torch
from torch import Tensor

from emorl.data.base import Batch
from emorl.data.generators.tetromino_shapes import FRAME, render

OF_TETROMINOES = {"x", "y", "shape", "color", "visibility"}
"""The factors of Tetrominoes; other data have some of them, too."""
UNCOVERED, OVERLAPPING = "pixels that no mask covers", "pixels that several masks cover"
UNEQUAL = "factors of different numbers of entities"
_CURES = {
    "a single colour": "leave these images out, or look at how they were written",
    "labels beyond the entities of the factors": (
        "store factors for each entity of the masks, the background first"
    ),
    UNEQUAL: "store those that are no objects' elsewhere",
    "pixels of an object that is not visible": "its visibility should be 1",
    UNCOVERED: "they count as background; store a mask of the background as entity 0",
    OVERLAPPING: "the first of the strongest masks gets them; store disjoint masks",
    "not what its factors render to": "these are no images of Tetrominoes, or factors got mixed up",
}
_NOT_FINITE = "write 0 for entities that are not there"


def cure(problem: str) -> str:
    """What to do about a problem that `problems` names."""
    return _CURES.get(problem, _NOT_FINITE)


def problems(batch: Batch, entity_masks: Tensor | None) -> dict[str, int]:
    """Problem -> number of images that have it.

    Args:
        batch: some images.
        entity_masks: as stored, [B, E, H, W]; None of a label map or without masks.
    """
    colours = batch.image.flatten(2)
    wrong = {"a single colour": (colours == colours[..., :1]).all(2).all(1)}
    for name, values in batch.factors.items():
        wrong[f"factor {name} is not finite"] = ~values.isfinite().flatten(1).all(1)
    entities = sorted({x.shape[1] for x in batch.factors.values() if x.shape[1] > 1})
    wrong[UNEQUAL] = torch.full((len(batch),), len(entities) > 1)
    if batch.mask is not None and entities:
        labelled = pixels(batch.mask, entities[0]) > 0
        wrong["labels beyond the entities of the factors"] = labelled[:, entities[0] :].any(1)
        if "visibility" in batch.factors and len(entities) == 1:
            unseen = ~_visible(batch) & labelled[:, : entities[0]]
            wrong["pixels of an object that is not visible"] = unseen[:, 1:].any(1)
    if entity_masks is not None:
        covering = (entity_masks > entity_masks.max() / 2).sum(1).flatten(1)
        wrong[UNCOVERED] = (covering == 0).any(1)
        wrong[OVERLAPPING] = (covering > 1).any(1)
    named = batch.factors.keys()
    if batch.image.shape[-1] == FRAME and {"shape", "x", "y", "color"} <= named <= OF_TETROMINOES:
        wrong["not what its factors render to"] = _differs_from_render(batch)
    return {problem: int(images.sum()) for problem, images in wrong.items()}


def hidden(batch: Batch) -> int:
    """How many images have an object that is there, as its visibility tells, without a pixel.

    That is no fault: others may hide it, and a crop may leave it out.
    """
    if batch.mask is None or "visibility" not in batch.factors:
        return 0
    visible = _visible(batch)
    labelled = pixels(batch.mask, visible.shape[1])[:, : visible.shape[1]] > 0
    return int((visible & ~labelled)[:, 1:].any(1).sum())


def pixels(mask: Tensor, entities: int = 0) -> Tensor:
    """How many pixels of label maps have each label.

    Args:
        mask: [B, 1, H, W].
        entities: labels below this, and below 256, have the column of their number.

    Returns:
        int64 [B, L]; the last column is that of all larger labels.
    """
    larger = max(256, entities)
    place = mask.flatten(1).long().clamp(max=larger)
    counts = torch.zeros(len(mask), larger + 1, dtype=torch.int64)
    return counts.scatter_add_(1, place, torch.ones_like(place))


def objects(mask: Tensor) -> list[int]:
    """How many labels but 0 each of the label maps [B, 1, H, W] has."""
    return [int(labels.unique().count_nonzero()) for labels in mask]


def _visible(batch: Batch) -> Tensor:
    """Which entities are there, as their visibility, a number or several, tells: bool [B, E]."""
    visible = batch.factors["visibility"] > 0
    return visible if visible.dim() == 2 else visible.any(2)


def _differs_from_render(batch: Batch) -> Tensor:
    """Which images or label maps of Tetrominoes differ from their factors' rendering, bool [B]."""
    try:
        image, mask = render(batch.factors)
    except ValueError:
        return torch.ones(len(batch), dtype=torch.bool)
    same = (image == batch.image).flatten(1).all(1)
    return ~(same if batch.mask is None else same & (mask == batch.mask).flatten(1).all(1))
