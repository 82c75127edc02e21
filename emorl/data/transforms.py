"""Cropping, resizing and shortening of any data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from emorl.data.base import Batch, ObjectDataset
from emorl.data.resources import require_memory

# Name -> (full height, full width), rows, columns.
_CROPS = {"clevr": ((240, 320), slice(29, 221), slice(64, 256))}


def resize(image: Tensor, size: int, *, nearest: bool = False) -> Tensor:
    """Resize uint8 images [B, C, H, W] (C = 1 or 3) to [B, C, size, size] with Pillow.

    Bicubic, as in the released EfficientMORL preprocessing; `nearest` for label maps, also int32.
    """
    from PIL import Image

    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    resized = torch.empty(*image.shape[:2], size, size, dtype=image.dtype)
    for source, target in zip(image.cpu(), resized, strict=True):
        array = source.permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(array[..., 0] if len(source) == 1 else array)
        pixels = np.array(picture.resize((size, size), method)).reshape(size, size, -1)
        target.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
    return resized.to(image.device)


class TransformedDataset(ObjectDataset):
    """A data set whose images are cropped, then resized; or only its first images.

    Factors stay as they are, also those in pixels; an object may fall out of the crop.

    Args:
        source: the data set to read from.
        limit: keep the first `limit` images (all, if there are fewer).
        crop: "clevr" for rows 29:221 and columns 64:256 of 240 x 320 images.
        size: new height and width in pixels.

    Raises:
        ValueError: if the crop is unknown or meant for another image size, a number is < 1, or
            images are larger than all memory.
    """

    def __init__(
        self,
        source: ObjectDataset,
        *,
        limit: int | None = None,
        crop: str | None = None,
        size: int | None = None,
    ) -> None:
        self.source, self.limit, self.crop, self.size = source, limit, crop, size
        self.name, self.image_size = source.name, source.image_size
        self.value_range, self.part, self.slow = source.value_range, source.part, source.slow
        if crop is not None:
            self.image_size = _cropped_size(crop, source.image_size)
        for name, value in (("limit", limit), ("size", size)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if size is not None:
            require_memory(3 * size**2, f"size: an image of {size}x{size}")
            self.image_size = (size, size)

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
            self._require_indices(indices, self.limit)

    def _transform(self, image: Tensor, *, nearest: bool = False) -> Tensor:
        if self.crop is not None:
            _, rows, columns = _CROPS[self.crop]
            image = image[..., rows, columns].contiguous()
        if self.size is None or tuple(image.shape[-2:]) == self.image_size:
            return image
        return resize(image, self.size, nearest=nearest)


def _cropped_size(crop: str, full: tuple[int, int]) -> tuple[int, int]:
    if crop not in _CROPS:
        raise ValueError(f"crop: expected one of {', '.join(_CROPS)}, got {crop!r}")
    expected, rows, columns = _CROPS[crop]
    if full != expected:
        raise ValueError(
            f"crop {crop!r}: expected images of {expected[0]}x{expected[1]}, "
            f"got {full[0]}x{full[1]}"
        )
    return rows.stop - rows.start, columns.stop - columns.start
