"""Decompositions prepared for drawing: checked, on the CPU, one image at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from emorl.metrics import adjusted_rand_index, match_segments, mean_squared_error
from emorl.report.colours import LabelMap, Pixels, paint, segment_colours, slot_colours

if TYPE_CHECKING:
    from emorl.models.base import Decomposition


@dataclass
class Scene:
    """One image, its decomposition and its true segmentation, if that is known.

    Attributes:
        image, reconstruction: [H, W, 3].
        components: [K, H, W, 3].
        masks: [K, H, W].
        labels: the slot of each pixel, [H, W].
        truth: true label map, [H, W].
        scores: MSE, and FG-ARI if the truth is known, as text.
    """

    image: Pixels
    reconstruction: Pixels
    components: Pixels
    masks: Pixels
    labels: LabelMap
    truth: LabelMap | None
    scores: str
    slot_colours: dict[int, Pixels]
    true_colours: dict[int, Pixels]

    def segmentation(self) -> Pixels:
        """The slots' segments in their colours, [H, W, 3]."""
        return paint(self.labels, self.slot_colours, self.image)

    def true_segmentation(self) -> Pixels:
        """The true segments in their colours, [H, W, 3]."""
        assert self.truth is not None
        return paint(self.truth, self.true_colours, self.image)


def make_scenes(
    images: Tensor, decomposition: Decomposition, true_masks: Tensor | None, first: int, last: int
) -> list[Scene]:
    """The scenes of images `first` to `last` (excluded).

    Raises:
        ValueError: if images, decomposition and true masks differ in size.
    """
    _check_sizes(images, decomposition, true_masks)
    scenes = []
    for index in range(first, min(last, len(images))):
        truth = None if true_masks is None else true_masks[index].reshape(images.shape[2:])
        scenes.append(_make_scene(index, images, decomposition, truth))
    return scenes


def _check_sizes(images: Tensor, decomposition: Decomposition, true_masks: Tensor | None) -> None:
    if images.dim() != 4 or images.shape != decomposition.reconstruction.shape or not len(images):
        raise ValueError(
            "expected images [B, 3, H, W] and their decomposition, got images "
            f"{list(images.shape)} and reconstruction {list(decomposition.reconstruction.shape)}"
        )
    batch, _, height, width = images.shape
    allowed = [[batch, 1, height, width], [batch, height, width]]
    if true_masks is not None and list(true_masks.shape) not in allowed:
        raise ValueError(
            f"expected true masks {allowed[0]} or {allowed[1]}, got {list(true_masks.shape)}"
        )


def pixels_of(image: Tensor) -> Pixels:
    """[..., 3, H, W] uint8 or float in [0, 1] -> [..., H, W, 3] float in [0, 1]."""
    largest = 1 if image.is_floating_point() else 255
    pixels: Pixels = array_of(image.movedim(-3, -1) / largest).clip(0, 1)
    return pixels


def array_of(values: Tensor) -> Pixels:
    """Any tensor as a float64 array."""
    array: Pixels = values.detach().double().cpu().numpy()
    return array


def _make_scene(
    index: int, images: Tensor, decomposition: Decomposition, truth: Tensor | None
) -> Scene:
    one = slice(index, index + 1)
    labels = decomposition.labels()[one].cpu()
    reconstruction = decomposition.reconstruction[one].detach().clamp(0, 1)
    error = mean_squared_error(images[one].to(reconstruction.device), reconstruction).item()
    scores, true_colours, matched = f"MSE {error:.2g}", {}, {}
    if truth is not None:
        truth = truth[None].cpu()
        ari = adjusted_rand_index(truth, labels, foreground_only=True).item()
        scores += "\nno object" if math.isnan(ari) else f"\nFG-ARI {ari:.2f}"
        true_colours = segment_colours(truth.unique().tolist())
        matched = match_segments(truth, labels)[0]
    masks = array_of(decomposition.masks[index, :, 0])
    return Scene(
        image=pixels_of(images[index]),
        reconstruction=pixels_of(reconstruction[0]),
        components=pixels_of(decomposition.components[index]),
        masks=masks,
        labels=labels[0].numpy(),
        truth=None if truth is None else truth[0].numpy().astype(np.int64),
        scores=scores,
        slot_colours=slot_colours(len(masks), true_colours, matched),
        true_colours=true_colours,
    )
