"""What the report's viewer shows: a few pictures taken apart, as PNG strips inside of JSON.

A strip is one PNG with pictures of one size beside each other: every slot's appearance, every
slot's mask, or the picture at every value of a dimension. `viewer.js` draws them.
Legend: B images, K slots, D dimensions of a slot, V values along one, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emorl.data import ObjectDataset
from emorl.evaluation.measuring import evaluating, noise_for
from emorl.evaluation.traversals import active, activeness, infer, ranges, traverse
from emorl.models import Decomposition, ObjectCentricModel, Stage
from emorl.report.colours import Pixels
from emorl.report.scenes import Scene, make_scenes, pixels_of
from emorl.report.templates import embedded
from emorl.report.tiles import Bytes, png
from emorl.terminal import tracked

IMAGES, DIMENSIONS, VALUES = 8, 6, 7
MEASURED = 16
"""Images for the range and the activeness of dimensions."""
LARGEST_SIDE = 128
"""Of larger images only every second row and column is shown, or every third ..."""
COLOUR_STEP = 5
"""Of traversals, in 255ths: files of a third the size, and off by 2 / 255 at most."""
ROOM = 12_000_000
"""Characters that all images may take, so that the report of a run stays below 15 MB."""


@dataclass(frozen=True)
class ViewedStage:
    """An image's decomposition after a layer or a refinement step.

    Attributes:
        appearances: strip of the slots' appearances, K pictures in colour.
        masks: strip of their masks, K pictures in grey; at each pixel they sum to 255.
        scores: MSE, and FG-ARI if the truth is known, as text.
    """

    appearances: str
    masks: str
    scores: str


@dataclass(frozen=True)
class ViewedImage:
    """An image, all its stages, and its traversals.

    Attributes:
        picture: the image itself.
        colours: of each slot, such as "#e69f00".
        stages: as many as `View.stages`.
        traversals: for each slot and each of `View.dimensions`, a strip of V recomposed pictures,
            with colours in steps of `COLOUR_STEP`.
        own: the slot's own value of the dimension, likewise.
    """

    picture: str
    colours: list[str]
    stages: list[ViewedStage]
    traversals: list[list[str]]
    own: list[list[float]]

    def size(self) -> int:
        """Characters that its pictures take."""
        stages = [text for stage in self.stages for text in (stage.appearances, stage.masks)]
        return sum(map(len, [self.picture, *stages, *chain.from_iterable(self.traversals)]))


@dataclass(frozen=True)
class ViewedDimension:
    """A latent dimension: its number, its activeness, and the V values that it takes."""

    number: int
    activeness: float
    values: list[float]


@dataclass(frozen=True)
class View:
    """Everything that the viewer of a run shows.

    Attributes:
        data: name of the data set.
        checkpoint: name of the weights.
        width, height: of every picture, in pixels.
        stages: names of layers and steps, the last of which is the result.
        dimensions: the most active ones, for every slot.
        images: the first ones of the data set.
    """

    data: str
    checkpoint: str
    width: int
    height: int
    stages: list[str]
    dimensions: list[ViewedDimension]
    images: list[ViewedImage]

    def as_json(self) -> dict[str, Any]:
        """The view as what JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class _Moved:
    """The dimensions that are moved, and where every dimension begins and ends, [D] each."""

    numbers: Tensor
    low: Tensor
    high: Tensor

    def values(self, dimension: int) -> list[float]:
        """The values that `traverse` gives to a dimension."""
        low, high = self.low[dimension], self.high[dimension]
        values: list[float] = (low + (high - low) * torch.linspace(0, 1, VALUES)).tolist()
        return values


def make_view(model: ObjectCentricModel, dataset: ObjectDataset, checkpoint: str) -> View:
    """Take the first images of a data set apart, with the means of the slots' posteriors.

    Images are left out from the end until all that is shown fits into `ROOM`.

    Args:
        model: whose slots are shown.
        dataset: of images that it can take.
        checkpoint: name of the model's weights.

    Raises:
        ValueError: if a picture is not finite, or a single image is too large.
    """
    indices = range(dataset.count(IMAGES))
    batch = dataset.__getitems__(indices)
    result = _decompose(model, batch.image, indices)
    stages = result.stages or (Stage("result", result),)
    scenes = [make_scenes(batch.image, s.decomposition, batch.mask, 0, IMAGES) for s in stages]
    samples = infer(model, dataset, MEASURED, means=False)
    if not all(x.isfinite().all() for x in (result.reconstruction, result.slots, samples)):
        raise ValueError("expected finite pictures and slots, got others")
    activity = activeness(model, samples)
    moved = _Moved(active(activity)[:DIMENSIONS], *ranges(samples))
    height, width = _thinned(scenes[0][0].image[None]).shape[1:3]
    return View(
        data=dataset.name,
        checkpoint=checkpoint,
        width=width,
        height=height,
        stages=[stage.name for stage in stages],
        dimensions=[
            ViewedDimension(d, float(activity[d]), moved.values(d)) for d in moved.numbers.tolist()
        ],
        images=_fitting(
            _viewed(model, [of_stage[image] for of_stage in scenes], result.slots[image], moved)
            for image in tracked(range(len(result.slots)), "viewer", "image")
        ),
    )


def masks_as_bytes(masks: Pixels) -> Bytes:
    """Masks [K, H, W] in 255ths that sum to 255 at each pixel, each off by less than one."""
    ends = np.rint(255 * masks.cumsum(0) / masks.sum(0))
    return np.diff(ends, axis=0, prepend=0).astype(np.uint8)


@torch.no_grad()
def _decompose(model: ObjectCentricModel, images: Tensor, indices: range) -> Decomposition:
    """The decomposition of images with these numbers, with all its stages."""
    device = next(model.parameters()).device
    noise = noise_for(model, indices, seed=0, device=device, means=True)
    with evaluating(model):
        result: Decomposition = model(images.to(device), generator=noise, details=True)
    return result


def _viewed(
    model: ObjectCentricModel, stages: list[Scene], slots: Tensor, moved: _Moved
) -> ViewedImage:
    """An image by its scene at every stage and its slots, [K, D]."""
    final, numbers = stages[-1], moved.numbers.tolist()
    traversals = traverse(model, slots, moved.numbers, moved.low, moved.high, VALUES)
    strips: list[list[str]] = [[] for _ in slots]
    for traversal in traversals:
        strips[traversal.slot].append(_strip(pixels_of(traversal.images), COLOUR_STEP))
    return ViewedImage(
        picture=_strip(final.image[None]),
        colours=[_hex(final.slot_colours[slot]) for slot in range(len(slots))],
        stages=[_stage(scene) for scene in stages],
        traversals=strips,
        own=slots[:, numbers].tolist(),
    )


def _stage(scene: Scene) -> ViewedStage:
    masks = embedded(png(_beside_each_other(masks_as_bytes(_thinned(scene.masks)))))
    return ViewedStage(_strip(scene.components), masks, scene.scores.replace("\n", ", "))


def _fitting(images: Iterable[ViewedImage]) -> list[ViewedImage]:
    """The images from the first on that fit into `ROOM`; later ones are not even made."""
    fitting, room = [], ROOM
    for image in images:
        room -= image.size()
        if room < 0:
            break
        fitting.append(image)
    if not fitting:
        raise ValueError(f"expected an image of at most {ROOM / 1e6:g} MB in all its parts")
    return fitting


def _strip(pictures: Pixels, step: int = 1) -> str:
    """The address of a strip of pictures [n, H, W, 3], with colours in so many 255ths."""
    colours = step * np.rint(255 / step * _thinned(pictures))
    return embedded(png(_beside_each_other(colours.astype(np.uint8))))


def _beside_each_other(pictures: Bytes) -> Bytes:
    """[n, H, W, ...] -> [H, n * W, ...]."""
    number, height, width = pictures.shape[:3]
    return pictures.swapaxes(0, 1).reshape(height, number * width, *pictures.shape[3:])


def _thinned(pictures: Pixels) -> Pixels:
    """Pictures [n, H, W, ...] with every so many rows and columns, none blended with another."""
    step = math.ceil(max(pictures.shape[1:3]) / LARGEST_SIDE)
    return pictures[:, ::step, ::step]


def _hex(colour: Pixels) -> str:
    return "#" + bytes(np.rint(255 * colour).astype(np.uint8)).hex()
