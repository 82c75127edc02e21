"""Sheets and films of what the dimensions of slots change in an image: `emorl traverse`."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from emorl.evaluation.traversals import Traversal
from emorl.models import Decomposition
from emorl.report.colours import Pixels, over_checker
from emorl.report.scenes import array_of, pixels_of
from emorl.report.tiles import PAPER, Bytes, colours_of_slots, framed, overlay, stacked, tiled

_MARK = (230, 0, 0)


def traversal_sheet(
    image: Tensor, own: Decomposition, traversals: list[Traversal], activity: Tensor
) -> Bytes:
    """All values side by side: a row for each slot and dimension.

    Args:
        image: uint8 [3, H, W].
        own: of its slots as they are.
        traversals: slot by slot, as many values in each.
        activity: activeness of each dimension, [D].
    """
    tiles = _slot_tiles(own)
    rows, labels = [], []
    for index, traversal in enumerate(traversals):
        begins = index == 0 or traversals[index - 1].slot != traversal.slot
        tile = tiles[traversal.slot]
        rows.append([tile if begins else np.full_like(tile, 255), *_values(traversal, own)])
        number = traversal.dimension
        labels.append(
            f"slot {traversal.slot}, dimension {number}\n"
            f"activeness {activity[number]:.2g}\n"
            f"own value {_own_value(traversal, own):.3g}"
        )
    return stacked([*_header(image, own, traversals), tiled(rows, labels)])


def traversal_frames(image: Tensor, own: Decomposition, traversals: list[Traversal]) -> list[Bytes]:
    """A frame for each value: a row per slot, a column per dimension; arguments as above."""
    tiles = _slot_tiles(own)
    rows: dict[int, list[list[Bytes]]] = {}
    for traversal in traversals:
        rows.setdefault(traversal.slot, []).append(_values(traversal, own))
    dimensions = dict.fromkeys(t.dimension for t in traversals)
    headers = ["", *(f"dim {dimension}" for dimension in dimensions)]
    header = _header(image, own, traversals)
    frames = []
    for value in range(len(traversals[0].values)):
        shown = [[tiles[slot], *(x[value] for x in row)] for slot, row in rows.items()]
        frames.append(stacked([*header, tiled(shown, headers=headers)]))
    return frames


def _header(image: Tensor, own: Decomposition, traversals: list[Traversal]) -> list[Bytes | str]:
    """The image, what its slots make of it, and what there is to know."""
    picture = image.permute(1, 2, 0).cpu().numpy()
    top = {
        "image": picture,
        "recomposed": _bytes(pixels_of(own.reconstruction[0])),
        "segments": overlay(picture, own.labels()[0].cpu().numpy()),
    }
    lines = ["red frame: nearest to the slot's own value"]
    slots = own.slots.shape[1]
    left_out = slots - len({t.slot for t in traversals})
    if left_out:
        lines.append(f"left out: {left_out} of {slots} slots, which cover no pixel")
    return [tiled([[framed(x, title) for title, x in top.items()]]), *lines]


def _slot_tiles(own: Decomposition) -> list[Bytes]:
    """Each slot's appearance where its mask is, in a frame of its colour."""
    colours = colours_of_slots(own.slots.shape[1]).tolist()
    components, masks = pixels_of(own.components[0]), array_of(own.masks[0, :, 0])
    return [
        framed(_bytes(over_checker(component, mask)), f"slot {slot}", tuple(colours[slot]))
        for slot, (component, mask) in enumerate(zip(components, masks, strict=True))
    ]


def _values(traversal: Traversal, own: Decomposition) -> list[Bytes]:
    """The picture with each value, which stands above it; the nearest to the own one is marked."""
    nearest = int((traversal.values - _own_value(traversal, own)).abs().argmin())
    titles = [f"{value:.3g}" for value in traversal.values.tolist()]
    return [
        framed(_bytes(pixels_of(x)), title, _MARK if index == nearest else PAPER)
        for index, (x, title) in enumerate(zip(traversal.images, titles, strict=True))
    ]


def _own_value(traversal: Traversal, own: Decomposition) -> float:
    return own.slots[0, traversal.slot, traversal.dimension].item()


def _bytes(pixels: Pixels) -> Bytes:
    """Pixels in [0, 1] as bytes."""
    shown: Bytes = np.rint(255 * pixels).astype(np.uint8)
    return shown
