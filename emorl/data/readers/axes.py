"""What the axes of stored images and masks mean, told by their sizes and, of masks, by content.

A letter stands for each axis: N images, E entities, H and W pixels, C channels, 1 for a length of
one that means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emorl.data.values import numbered

CHANNELS = (1, 3)
_ENTITY_AXES = ("NEHW1", "NE1HW", "NEHW", "NHWE1", "NHWE")
_LABEL_AXES = ("NHW", "NHW1", "N1HW", "N1HW1", "N11HW")


def image_axes(shape: Sequence[int], name: str) -> str:
    """The axes of images: "NHWC", "NCHW" or, of grey ones, "NHW".

    Raises:
        ValueError: if the shape is none of these, one image's, or without a pixel.
    """
    if 0 not in shape:
        if len(shape) == 4 and shape[3] in CHANNELS:
            return "NHWC"
        if len(shape) == 4 and shape[1] in CHANNELS:
            return "NCHW"
        if len(shape) == 3 and shape[2] not in CHANNELS:
            return "NHW"
        if len(shape) == 3:
            raise ValueError(
                f"expected {name} [N, H, W, 1 or 3], got {list(shape)}: one image is [1, H, W, 3]"
            )
    raise ValueError(f"expected {name} [N, H, W, 1 or 3], got {list(shape)}")


def mask_axes(shape: Sequence[int], sizes: dict[str, int]) -> tuple[str | None, str | None]:
    """How masks of this shape can be understood.

    Args:
        shape: of the stored masks.
        sizes: of the images' axes N, H and W.

    Returns:
        The axes as one mask per entity, and as a label map; None where they cannot be that. Both
        are there for one mask, which `is_label_map` tells from a label map.
    """

    def fits(axes: str) -> bool:
        known = {**sizes, "1": 1}
        return len(axes) == len(shape) and all(
            known.get(axis, size) == size for axis, size in zip(axes, shape, strict=True)
        )

    entities = next((axes for axes in _ENTITY_AXES if fits(axes)), None)
    labels = next((axes for axes in _LABEL_AXES if fits(axes)), None)
    return entities, labels


def is_label_map(rows: NDArray[Any]) -> bool:
    """Whether what may be a label map, or the mask of a single entity, is a label map.

    Entities cover each pixel, so a single one's mask has one value, which is not 0.
    """
    return rows.size > 0 and bool((rows != rows.max()).any() or rows.max() == 0)


def arranged(rows: NDArray[Any], axes: str, wanted: str) -> NDArray[Any]:
    """A view with the axes `wanted`; those that are not stored have length 1."""
    kept = axes.replace("1", "")
    lengths = [n for n, axis in zip(rows.shape, axes, strict=True) if axis != "1"]
    missing = [axis for axis in wanted if axis not in kept]
    view = rows.reshape(*lengths, *(1,) * len(missing))
    return view.transpose([[*kept, *missing].index(axis) for axis in wanted])


def require_finite_masks(rows: NDArray[Any], indices: Sequence[int] | None = None) -> None:
    """Refuse masks of entities [N, ...] with NaN or infinity, which would become some label.

    Args:
        rows: of images.
        indices: of these images in the file, for the complaint; None leaves them out.

    Raises:
        ValueError: for the first.
    """
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if not finite.all():
        where = "" if indices is None else numbered(indices, int(finite.argmin()))
        raise ValueError(f"{where}expected masks of finite numbers, got NaN or infinity")


def labels_of(rows: NDArray[Any], most: int) -> NDArray[Any]:
    """Labels as uint8 or int32, whichever holds `most`.

    Args:
        rows: integers, or floats that are whole numbers.
        most: the largest label that there may be.

    Raises:
        ValueError: if a number is no label, or above `most`.
    """
    low, high = (rows.min(), rows.max()) if rows.size else (0, 0)
    if not (low >= 0 and high <= most) or (rows.dtype.kind == "f" and (rows % 1).any()):
        raise ValueError(f"expected labels from 0 to {most}, got {low} to {high}")
    return rows.astype(np.uint8 if most <= np.iinfo(np.uint8).max else np.int32)
