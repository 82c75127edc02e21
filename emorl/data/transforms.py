"""Cropping, resizing and shortening of any data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from emorl.data.base import Batch, ObjectDataset, as_indices
from emorl.fields import fit, shown
from emorl.memory import require_memory

Box = tuple[int, int, int, int]
"""First row, row after the last, first column, column after the last."""
Shape = tuple[int, int]
"""Height and width in pixels."""
CENTRE = "centre"


@dataclass(frozen=True)
class Preset:
    """How published code cuts and resizes the images of a data set.

    Attributes:
        full: the images that it is meant for.
        box: what is cut out of them.
        method: how images are resized, a filter of Pillow; label maps take the nearest pixel.
    """

    full: Shape
    box: Box
    method: Literal["bicubic", "bilinear"]


CROPS = {
    "clevr": Preset((240, 320), (29, 221, 64, 256), "bicubic"),  # EfficientMORL
    "clevr-bilinear": Preset((240, 320), (29, 221, 64, 256), "bilinear"),  # IODINE, Slot Attention
    "clevrtex": Preset((240, 320), (24, 216, 64, 256), "bilinear"),  # ClevrTex's own loader
}


def method_of(crop: str | Sequence[int] | None) -> str:
    """The filter that images are resized with."""
    preset = CROPS.get(crop) if isinstance(crop, str) else None
    return "bicubic" if preset is None else preset.method


def shape_of(size: int | Sequence[int]) -> Shape:
    """Height and width: one number stands for both.

    Raises:
        ValueError: if these are no two numbers from 1, or an image takes more than all memory.
    """
    asked = fit("size", size, int | list[int])
    sides = (asked, asked) if isinstance(asked, int) else tuple(asked)
    if len(sides) != 2:
        raise ValueError(f"size: expected a height and a width, got {size}")
    if min(sides) < 1:
        raise ValueError(f"size: expected at least 1, got {min(sides)}")
    require_memory(3 * math.prod(sides), f"size: an image of {sides[0]}x{sides[1]}")
    return sides[0], sides[1]


def cut(full: Shape, crop: str | Sequence[int] | None, shape: Shape | None) -> Box:
    """What a crop takes out of an image.

    Args:
        full: the image's height and width.
        crop: one of `CROPS`; "centre" for the largest region in the middle with the aspect of
            `shape` (a square without one); four numbers as in `Box`; None for all.
        shape: height and width that the region is resized to.

    Raises:
        ValueError: if the crop is unknown, or does not lie in the image.
    """
    height, width = full
    if crop is None:
        return 0, height, 0, width
    if crop == CENTRE:
        return centred((0, height, 0, width), shape or (1, 1))
    if isinstance(crop, str):
        preset = CROPS.get(crop)
        if preset is None:
            names = ", ".join([*CROPS, CENTRE])
            raise ValueError(f"crop: expected one of {names}, or four numbers, got {crop!r}")
        if full != preset.full:
            expected = f"{preset.full[0]}x{preset.full[1]}"
            raise ValueError(
                f"crop {crop!r}: expected images of {expected}, got {height}x{width}; "
                "without a crop (data.crop: null) they are taken whole"
            )
        return preset.box
    top, bottom, left, right = box_of(crop)
    if bottom > height or right > width:
        raise ValueError(
            f"crop {[*crop]}: expected images of at least {bottom}x{right}, got {height}x{width}"
        )
    return top, bottom, left, right


def box_of(crop: Sequence[int], name: str = "crop") -> Box:
    """A crop that was given as numbers.

    Raises:
        ValueError: if these are not four, or enclose no pixel, naming `name`.
    """
    expected = "[FIRST_ROW, ROW_AFTER, FIRST_COLUMN, COLUMN_AFTER]"
    try:
        top, bottom, left, right = fit(name, crop, tuple[int, int, int, int])
    except ValueError:
        raise ValueError(f"{name}: expected {expected}, got {shown(crop)}") from None
    if not (0 <= top < bottom and 0 <= left < right):
        raise ValueError(f"{name}: expected {expected}, got {[*crop]}")
    return top, bottom, left, right


def centred(box: Box, shape: Shape) -> Box:
    """The largest region in the middle of a box with this aspect, up to a pixel."""
    height, width = box[1] - box[0], box[3] - box[2]
    tall = max(1, min(height, round(width * shape[0] / shape[1])))
    wide = max(1, min(width, round(height * shape[1] / shape[0])))
    top, left = box[0] + (height - tall) // 2, box[2] + (width - wide) // 2
    return top, top + tall, left, left + wide


def resize(image: Tensor, shape: Shape, method: str = "bicubic") -> Tensor:
    """Resize images [B, C, H, W] (uint8 with C = 1 or 3; int32 label maps) to a height and width.

    Args:
        image: the images.
        shape: height and width.
        method: a filter of Pillow, "bicubic", "bilinear" or, for label maps, "nearest".
    """
    from PIL import Image

    resized = torch.empty(*image.shape[:2], *shape, dtype=image.dtype)
    for source, target in zip(image.cpu(), resized, strict=True):
        array = source.permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(array[..., 0] if len(source) == 1 else array)
        small = picture.resize(shape[::-1], Image.Resampling[method.upper()])
        target.copy_(torch.from_numpy(np.array(small).reshape(*shape, -1)).permute(2, 0, 1))
    return resized.to(image.device)


class TransformedDataset(ObjectDataset):
    """A data set whose images are cropped, then resized; or only its first images.

    Factors stay as they are, also those in pixels; an object may fall out of the crop.

    Args:
        source: the data set to read from.
        limit: keep the first `limit` images (all, if there are fewer).
        crop: as in `cut`.
        size: new height and width in pixels; one number for squares.

    Raises:
        ValueError: if the crop is unknown or does not fit the images, a number is < 1, or images
            are larger than all memory.
    """

    def __init__(
        self,
        source: ObjectDataset,
        *,
        limit: int | None = None,
        crop: str | Sequence[int] | None = None,
        size: int | Sequence[int] | None = None,
    ) -> None:
        self.source, self.limit, self.crop, self.size = source, limit, crop, size
        self.name = source.name
        self.value_range, self.part, self.slow = source.value_range, source.part, source.slow
        self.is_whole = source.is_whole
        if limit is not None and limit < 1:
            raise ValueError(f"limit: expected at least 1, got {limit}")
        shape = None if size is None else shape_of(size)
        self.box = cut(source.image_size, crop, shape)
        top, bottom, left, right = self.box
        self.image_size = shape or (bottom - top, right - left)

    def files(self) -> Sequence[Path]:
        """Those of the source."""
        return self.source.files()

    def reading(self) -> dict[str, Any]:
        """The source's, what is cut out, and how that is resized."""
        resized = {"image_size": self.image_size, "method": method_of(self.crop)}
        return {"source": self.source.reading(), "box": self.box, **resized}

    def before_resizing(self) -> ObjectDataset | None:
        """The source's images, cut out; or what they were before the source itself resized them."""
        if self.size is not None:
            return TransformedDataset(self.source, limit=self.limit, crop=self.box)
        whole = self.source.before_resizing() if self.crop is None else None
        return None if whole is None else TransformedDataset(whole, limit=self.limit)

    def __len__(self) -> int:
        return len(self.source) if self.limit is None else self.source.count(self.limit)

    def count(self, most: int) -> int:
        """The length, but at most `most`."""
        return self.source.count(most if self.limit is None else min(most, self.limit))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images at `indices`, transformed."""
        self._require_limit(indices)
        batch = self.source.__getitems__(indices)
        return replace(
            batch,
            image=self._transform(batch.image),
            mask=None if batch.mask is None else self._transform(batch.mask, nearest=True),
        )

    def read_images(self, indices: Sequence[int]) -> Tensor:
        """The images alone, transformed."""
        self._require_limit(indices)
        return self._transform(self.source.read_images(indices))

    def _require_limit(self, indices: Sequence[int]) -> None:
        if self.limit is not None:
            self._require_indices(as_indices(indices), self.limit)

    def _transform(self, image: Tensor, *, nearest: bool = False) -> Tensor:
        top, bottom, left, right = self.box
        image = image[..., top:bottom, left:right].contiguous()
        if tuple(image.shape[-2:]) == self.image_size:
            return image
        return resize(image, self.image_size, "nearest" if nearest else method_of(self.crop))
