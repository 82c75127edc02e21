"""What the dimensions of slots do to pictures: activeness, and traversals.

Legend: B images, K slots, D dimensions, V values along one, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emorl.data import ObjectDataset
from emorl.evaluation.measuring import evaluating, noise_for
from emorl.models import Decomposition, ObjectCentricModel
from emorl.terminal import tracked

ACTIVENESS_IMAGES, ACTIVENESS_VALUES = 100, 6  # as published
LEAST_ACTIVENESS = 0.01
"""Of the most active dimension's: a less active one moves pixels less than a tenth as far."""
_TOGETHER = 48  # slots decoded at once
_BATCH = 16


@dataclass(frozen=True)
class Traversal:
    """One image, with one dimension of one slot taken through its range.

    Attributes:
        slot: number of the slot.
        dimension: number of the dimension.
        values: that it takes, [V].
        images: recomposed with each value, [V, 3, H, W] in [0, 1].
    """

    slot: int
    dimension: int
    values: Tensor
    images: Tensor


@torch.no_grad()
def infer(
    model: ObjectCentricModel,
    dataset: ObjectDataset,
    images: int,
    *,
    means: bool,
    seed: int = 0,
    num_slots: int | None = None,
    refinement_steps: int | None = None,
) -> Tensor:
    """The slots of the first images, [B, K, D] on the CPU; samples, or posterior means."""
    device, count = next(model.parameters()).device, dataset.count(images)
    slots = []
    with evaluating(model):
        for start in tracked(range(0, count, _BATCH), "decomposing", "batch"):
            indices = range(start, min(start + _BATCH, count))
            decomposition: Decomposition = model(
                dataset.read_images(indices).to(device),
                num_slots=num_slots,
                refinement_steps=refinement_steps,
                generator=noise_for(model, indices, seed=seed, device=device, means=means),
            )
            slots.append(decomposition.slots.cpu())
    return torch.cat(slots)


def ranges(slots: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of each dimension over images and slots, [D] each.

    The released code's traversals are centred at (max - min) / 2 instead of (max + min) / 2, and
    reach a square root to both sides; these go from end to end.
    """
    low, high = slots.flatten(0, 1).aminmax(dim=0)
    return low, high


def activeness(
    model: ObjectCentricModel,
    slots: Tensor,
    *,
    values: int = ACTIVENESS_VALUES,
    seed: int = 0,
) -> Tensor:
    """How much each dimension changes pictures (Peebles et al., 2020; Emami et al., 2021).

    In each image one random slot has one dimension after the other taken through `values` evenly
    spaced values of its range, all else unchanged; the variance of the recomposed image over these
    values is averaged over pixels, channels and images.

    Args:
        model: that made the slots.
        slots: of images, [B, K, D]; published were 100 images, and samples.
        values: along each dimension.
        seed: of the random slots.

    Returns:
        [D], squared colours, which go from 0 to 1.
    """
    low, high = ranges(slots)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(slots.shape[1], (len(slots),), generator=generator)
    total = torch.zeros(slots.shape[2], dtype=torch.float64)
    for image in tracked(range(len(slots)), "activeness", "image"):
        slot = int(chosen[image])
        swept = sweep(model, slots[image], slot, range(len(total)), low, high, values)
        total += swept.double().var(dim=1).flatten(1).mean(1)
    return total / max(len(slots), 1)


def active(activity: Tensor) -> Tensor:
    """The numbers of the active dimensions, the most active first: see `LEAST_ACTIVENESS`."""
    order = activity.argsort(descending=True, stable=True)
    return order[activity[order] > LEAST_ACTIVENESS * activity.max()]


@torch.no_grad()
def recompose(model: ObjectCentricModel, slots: Tensor) -> Decomposition:
    """The decomposition, of one image, that its slots [K, D] amount to."""
    slots = slots[None].to(next(model.parameters()).device)
    with evaluating(model):
        return model.compose(model.decode(slots), slots)


def traverse(
    model: ObjectCentricModel,
    slots: Tensor,
    dimensions: Tensor,
    low: Tensor,
    high: Tensor,
    values: int,
    *,
    chosen: Sequence[int] | None = None,
) -> list[Traversal]:
    """Traversals of the slots of an image.

    Args:
        model: that made the slots.
        slots: of the image, [K, D].
        dimensions: numbers of those to take through their ranges, [n].
        low: least value of each dimension, [D].
        high: largest value of each dimension, [D].
        values: along each dimension, at least 2.
        chosen: numbers of the slots to traverse; None for all.
    """
    steps = _values(low, high, values)
    numbers = dimensions.tolist()
    return [
        Traversal(slot, dimension, steps[:, dimension], images)
        for slot in (range(len(slots)) if chosen is None else chosen)
        for dimension, images in zip(
            numbers, sweep(model, slots, slot, numbers, low, high, values), strict=True
        )
    ]


@torch.no_grad()
def sweep(
    model: ObjectCentricModel,
    slots: Tensor,
    slot: int,
    dimensions: range | list[int],
    low: Tensor,
    high: Tensor,
    values: int,
) -> Tensor:
    """An image recomposed with changed slots, [dimensions, V, 3, H, W] on the CPU.

    The other slots are decoded once.

    Args:
        model: that made the slots.
        slots: of the image, [K, D].
        slot: the one to change.
        dimensions: which to take from `low` to `high`, one by one.
        low: [D].
        high: [D].
        values: along each dimension.
    """
    device = next(model.parameters()).device
    slots, steps = slots.to(device), _values(low, high, values).to(device)
    with evaluating(model):
        decoded = model.decode(slots[None])
        swept = []
        per_part = max(1, _TOGETHER // values)
        for start in range(0, len(dimensions), per_part):
            part = dimensions[start : start + per_part]
            changed = slots[slot].expand(len(part), values, -1).clone()
            for row, dimension in enumerate(part):
                changed[row, :, dimension] = steps[:, dimension]
            images = decoded.repeat(len(part) * values, 1, 1, 1, 1)
            images[:, slot] = model.decode(changed).flatten(0, 1)
            every = slots.repeat(len(images), 1, 1)
            every[:, slot] = changed.flatten(0, 1)
            composed = model.compose(images, every).reconstruction
            swept.append(composed.unflatten(0, (len(part), values)).cpu())
    return torch.cat(swept)


def _values(low: Tensor, high: Tensor, values: int) -> Tensor:
    """Evenly spaced from end to end, [V, D]."""
    return low + (high - low) * torch.linspace(0, 1, values)[:, None]
