"""Features of DeepMind's multi-object files, and their meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emorl.data.readers.axes import require_finite_masks
from emorl.data.readers.base import MOST_ENTITIES
from emorl.data.values import PixelValues

Scene = tuple[NDArray[np.uint8], NDArray[Any], dict[str, NDArray[np.float32]]]
"""Image [3, H, W], entity masks [E, H, W] and factors [E] or [E, n]."""

_COMMON = frozenset({"image", "mask", "x", "y", "shape", "color", "visibility"})


@dataclass(frozen=True)
class Layout:
    """One of the published file layouts.

    Attributes:
        name: of the data set.
        image_size: height and width, pixels.
        keys: names of the features that are read, image and mask among them; a record may have
            others.
        entities_first: whether masks are stored as [E, H, W] rather than [H, W, E].
        frames: images in a record; factors are then stored as [E, frames, n].
        backgrounds: how many of the first entities are background, label 0.
        variants: number of entities -> published name of the variant.
    """

    name: str
    image_size: tuple[int, int]
    keys: frozenset[str]
    entities_first: bool = True
    frames: int = 1
    backgrounds: int = 1
    variants: Mapping[int, str] = field(default_factory=dict)

    def decode(
        self, features: Mapping[str, NDArray[Any]], pixels: PixelValues, frame: int = 0
    ) -> Scene:
        """An image of a record with its masks and factors.

        Raises:
            ValueError: if a feature is missing or has another size, or the image's values are not
                in their range.
        """
        if missing := self.keys - features.keys():
            raise ValueError(f"expected {', '.join(sorted(missing))}, got {describe(features)}")
        image = self.decode_image(features, pixels, frame)
        masks = self._masks(features)[frame]
        require_finite_masks(masks)
        entities = len(masks)
        factors = {key: features[key] for key in sorted(self.keys - {"image", "mask"})}
        for key, values in factors.items():
            if values.size == 0 or values.size % (entities * self.frames):
                raise ValueError(f"expected {key} for {entities} entities, got {values.size}")
        return (
            image,
            masks if masks.dtype == np.uint8 else masks.astype(np.float32),
            {key: self._per_entity(values, entities, frame) for key, values in factors.items()},
        )

    def decode_image(
        self, features: Mapping[str, NDArray[Any]], pixels: PixelValues, frame: int = 0
    ) -> NDArray[np.uint8]:
        """The image alone, [3, H, W].

        Raises:
            ValueError: if there is none of this size, or its values are not in their range.
        """
        height, width = self.image_size
        if "image" not in features:
            raise ValueError(f"expected an image of {height}x{width}, got none")
        values = features["image"]
        if values.size not in self._image_sizes():
            raise ValueError(f"expected an image of {height}x{width}, got {describe(features)}")
        values = values.reshape(self.frames, height, width, -1)[frame]
        image = pixels.to_bytes(values[None])[0].transpose(2, 0, 1)
        return np.broadcast_to(image, (3, height, width)).copy()

    def fits(self, features: Mapping[str, NDArray[Any]]) -> bool:
        """Whether a record with these features is of this layout."""
        return features.keys() >= self.keys and features["image"].size in self._image_sizes()

    def with_masks_of(self, features: Mapping[str, NDArray[Any]]) -> Layout:
        """This layout with the order of the masks' axes that makes them cover each pixel once.

        Only a file that others have written has another order than the published one.
        """
        other = dataclasses.replace(self, entities_first=not self.entities_first)
        if not _cover_once(self._masks(features)) and _cover_once(other._masks(features)):
            return other
        return self

    def variant(self, entities: int) -> str:
        """The data set's name with that of its variant, if it has one."""
        return " ".join([self.name, *(v for n, v in self.variants.items() if n == entities)])

    def _masks(self, features: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The masks of all frames, [frames, E, H, W]."""
        (height, width), stored = self.image_size, features["mask"]
        pixels = self.frames * height * width
        told = "visibility" in self.keys
        entities = features["visibility"].size if told else stored.size // pixels
        if not 1 <= entities <= MOST_ENTITIES:
            raise ValueError(f"expected 1 to {MOST_ENTITIES} entities, got {describe(features)}")
        if stored.size != entities * pixels:
            raise ValueError(f"expected {entities} entity masks, got {describe(features)}")
        if self.entities_first:
            return stored.reshape(self.frames, entities, height, width)
        return stored.reshape(self.frames, height, width, entities).transpose(0, 3, 1, 2)

    def _image_sizes(self) -> tuple[int, int]:
        """Numbers of an image, grey or coloured."""
        pixels = self.frames * self.image_size[0] * self.image_size[1]
        return pixels, 3 * pixels

    def _per_entity(self, values: NDArray[Any], entities: int, frame: int) -> NDArray[np.float32]:
        numbers = values.reshape(entities, self.frames, -1)[:, frame]
        return (numbers[:, 0] if numbers.shape[1] == 1 else numbers).astype(np.float32)


LAYOUTS = (
    Layout("tetrominoes", (35, 35), _COMMON),
    Layout(
        "multi-dsprites",
        (64, 64),
        _COMMON | {"orientation", "scale"},
        entities_first=False,
        variants={4: "binarized", 5: "colored_on_colored", 6: "colored_on_grayscale"},
    ),
    Layout(
        "clevr",
        (240, 320),
        _COMMON | {"z", "rotation", "size", "material", "pixel_coords"},
    ),
    Layout("cater", (64, 64), frozenset({"image", "mask", "object_positions"}), frames=33),
    Layout(
        "objects-room",
        (64, 64),
        frozenset({"image", "mask"}),
        backgrounds=4,
        variants={4: "empty_room", 7: "train", 10: "six_objects or identical_color"},
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


def _cover_once(masks: NDArray[Any]) -> bool:
    """Whether masks [frames, E, H, W] cover each pixel once."""
    return bool(((masks > masks.max() / 2).sum(1) == 1).all())
