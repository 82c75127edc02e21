"""Features of DeepMind's multi-object files, and their meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emorl.data.readers.base import MOST_ENTITIES
from emorl.data.values import PixelValues

_COMMON = frozenset({"image", "mask", "x", "y", "shape", "color", "visibility"})


@dataclass(frozen=True)
class Layout:
    """One of the published file layouts.

    Attributes:
        name: of the data set.
        image_size: height and width, pixels.
        keys: names of the features, image and mask among them.
        entities_first: whether masks are stored as [E, H, W] rather than [H, W, E].
    """

    name: str
    image_size: tuple[int, int]
    keys: frozenset[str]
    entities_first: bool = True

    def decode(
        self, features: Mapping[str, NDArray[Any]], pixels: PixelValues
    ) -> tuple[NDArray[np.uint8], NDArray[Any], dict[str, NDArray[np.float32]]]:
        """Image [3, H, W], entity masks [E, H, W] and factors [E] or [E, n] of a record.

        Raises:
            ValueError: if a feature is missing or has another size, or the image's values are not
                in their range.
        """
        if missing := self.keys - features.keys():
            raise ValueError(f"expected {', '.join(sorted(missing))}, got {describe(features)}")
        (height, width), entities = self.image_size, features["visibility"].size
        image = self.decode_image(features, pixels)
        if not 1 <= entities <= MOST_ENTITIES:
            raise ValueError(f"expected 1 to {MOST_ENTITIES} entities, got {describe(features)}")
        if features["mask"].size != entities * height * width:
            raise ValueError(f"expected {entities} entity masks, got {describe(features)}")
        if self.entities_first:
            masks = features["mask"].reshape(entities, height, width)
        else:
            masks = features["mask"].reshape(height, width, entities).transpose(2, 0, 1)
        factors = {key: features[key] for key in sorted(self.keys - {"image", "mask"})}
        for key, values in factors.items():
            if values.size == 0 or values.size % entities:
                raise ValueError(f"expected {key} for {entities} entities, got {values.size}")
        return (
            image,
            masks if masks.dtype == np.uint8 else masks.astype(np.float32),
            {key: _per_entity(values, entities) for key, values in factors.items()},
        )

    def decode_image(
        self, features: Mapping[str, NDArray[Any]], pixels: PixelValues
    ) -> NDArray[np.uint8]:
        """The image alone, [3, H, W].

        Raises:
            ValueError: if there is none of this size, or its values are not in their range.
        """
        height, width = self.image_size
        if "image" not in features:
            raise ValueError(f"expected an image of {height}x{width}, got none")
        values = features["image"]
        channels = values.size // (height * width)
        if channels not in (1, 3) or values.size != channels * height * width:
            raise ValueError(f"expected an image of {height}x{width}, got {describe(features)}")
        image = pixels.to_bytes(values[None]).reshape(height, width, channels).transpose(2, 0, 1)
        return np.broadcast_to(image, (3, height, width)).copy()

    def fits(self, features: Mapping[str, NDArray[Any]]) -> bool:
        """Whether a record with these features is of this layout."""
        pixels = self.image_size[0] * self.image_size[1]
        sizes = (pixels, 3 * pixels)
        return features.keys() == self.keys and features["image"].size in sizes


LAYOUTS = (
    Layout("tetrominoes", (35, 35), _COMMON),
    Layout("multi-dsprites", (64, 64), _COMMON | {"orientation", "scale"}, entities_first=False),
    Layout(
        "clevr",
        (240, 320),
        _COMMON | {"z", "rotation", "size", "material", "pixel_coords"},
    ),
)


def recognise(features: Mapping[str, NDArray[Any]]) -> Layout:
    """The layout of a record.

    Raises:
        ValueError: if it is none of the known ones.
    """
    for layout in LAYOUTS:
        if layout.fits(features):
            return layout
    names = ", ".join(layout.name for layout in LAYOUTS)
    raise ValueError(f"expected a record of {names}, got {describe(features)}")


def describe(features: Mapping[str, NDArray[Any]]) -> str:
    """Names and sizes of a record's features, in one line."""
    if not features:
        return "no features"
    return ", ".join(f"{name}[{values.size}]" for name, values in sorted(features.items()))


def _per_entity(values: NDArray[Any], entities: int) -> NDArray[np.float32]:
    shape = (entities,) if values.size == entities else (entities, values.size // entities)
    return values.reshape(shape).astype(np.float32)
