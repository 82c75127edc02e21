"""Colours of segments and slots, and painting with them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float64]  # in [0, 1]
LabelMap = NDArray[np.int64]

# Okabe and Ito's colours, then four of Paul Tol's "muted": apart for colour-blind readers too.
_CODES = (
    "E69F00 56B4E9 009E73 F0E442 0072B2 D55E00 CC79A7 "  # Okabe and Ito
    "332288 882255 999933 88CCEE"  # Tol
)
PALETTE: Pixels = np.array([list(bytes.fromhex(code)) for code in _CODES.split()]) / 255
BACKGROUND = np.full(3, 0.72)


def segment_colours(labels: Iterable[int]) -> dict[int, Pixels]:
    """Grey for the background 0, then the palette in the order of the labels, again if it ends."""
    objects = [label for label in labels if label != 0]
    return {0: BACKGROUND} | {label: _colour(i) for i, label in enumerate(objects)}


def fixed_colours(labels: Iterable[int]) -> dict[int, Pixels]:
    """As `segment_colours`, each label in the colour that it has where none below it lacks."""
    return {label: _colour(label - 1) if label else BACKGROUND for label in labels}


def slot_colours(
    num_slots: int, truth: dict[int, Pixels], matched: dict[int, int]
) -> dict[int, Pixels]:
    """A colour for each slot: its true segment's, or else one that no true segment has.

    Args:
        num_slots: number of slots, labelled from 0.
        truth: colours of the true segments; empty if they are not known.
        matched: slot -> true segment.
    """
    free = len(truth) - 1 if truth else 0  # the background takes no place in the palette
    colours = {}
    for slot in range(num_slots):
        if slot in matched:
            colours[slot] = truth[matched[slot]]
        else:
            colours[slot] = _colour(free)
            free += 1
    return colours


def paint(labels: LabelMap, colours: dict[int, Pixels], image: Pixels | None = None) -> Pixels:
    """Colour a label map [H, W], with the image [H, W, 3] showing through in grey if given."""
    there, places = np.unique(labels, return_inverse=True)
    of_those = np.array([colours[label] for label in there.tolist()])
    painted: Pixels = of_those[places.reshape(labels.shape)]
    if image is None:
        return painted
    return 0.85 * painted + 0.15 * image.mean(-1, keepdims=True)


def over_checker(component: Pixels, mask: Pixels) -> Pixels:
    """A component [H, W, 3] where its mask [H, W] is 1, a pale checker where it is 0."""
    height, width = mask.shape
    cell = max(1, round(min(height, width) / 12))
    dark = (np.arange(height)[:, None] // cell + np.arange(width) // cell) % 2
    checker = np.where(dark, 0.86, 0.97)[..., None]
    alpha = mask[..., None]
    blended: Pixels = alpha * component + (1 - alpha) * checker
    return blended


def _colour(index: int) -> Pixels:
    colour: Pixels = PALETTE[index % len(PALETTE)]
    return colour
