"""What the numbers of stored images mean: 0 to 1, or 0 to 255.

A range is decided once, when a file is opened, by the first of these that tells it:

1. `value_range`, which the user gives;
2. an attribute "value_range" of the file, which `emorl data convert` writes;
3. the layout: EfficientMORL's HDF5 files (images with masks) and DeepMind's TFRecords hold 0 to 255
   whatever the dtype;
4. the dtype: bool is 0 or 1, integers are 0 to 255, floats are 0 to 1.

No pixel has a say. Pixels are checked instead, each image when it is read: floats from 0 to 1 may
exceed their range by `OVERSHOOT`, values from 0 to 255 by what rounds into it. Where nobody told
the range of 0 to 255 (3 and 4), a file whose first images have no value above 1 is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ValueRange = tuple[Literal[0], Literal[1, 255]]
UNIT: ValueRange = (0, 1)
BYTES: ValueRange = (0, 255)

SETTINGS = "(a run's data.value_range, a command's --value-range)"
"""Where `value_range` can be given, for messages that ask for it."""

OVERSHOOT = 9 / 32
"""How far floats may lie outside of [0, 1]: the most that bicubic resizing (a = -1/2, as in Pillow)
can exceed the range of its image. Halfway between two pixels its four weights are -1/16, 9/16,
9/16, -1/16; along both axes the negative products add up to 2 * 9/8 * 1/8 = 9/32. Every other
position has less."""

LOOKED_AT = 1000
"""Images among which one must have a value above 1 where 0 to 255 is only assumed."""


@dataclass(frozen=True)
class PixelValues:
    """How the stored numbers of a file's images become bytes.

    Attributes:
        range: of the numbers.
        reason: what decided it, in words.
        told: whether the user or the file said so, rather than layout or dtype.
    """

    range: ValueRange
    reason: str
    told: bool

    def to_bytes(
        self, images: NDArray[Any], indices: Sequence[int] | None = None
    ) -> NDArray[np.uint8]:
        """Images as uint8, 0 to 255, rounded; an overshoot is cut off.

        Args:
            images: bool, integers or floats [B, ...].
            indices: of these images in the file, for complaints; None leaves them out.

        Raises:
            ValueError: naming the first row with a value that is not finite or not in the range.
        """
        if images.dtype == np.uint8 and self.range == BYTES:
            return images
        if images.dtype.kind == "f":
            return self._floats_to_bytes(images, indices)
        numbers = images.view(np.uint8) if images.dtype == np.bool_ else images
        if numbers.size and not (numbers.min() >= 0 and numbers.max() <= self.range[1]):
            raise self._complaint(images, indices)
        small = numbers.astype(np.uint8)
        return small if self.range == BYTES else small * np.uint8(255)

    def _floats_to_bytes(
        self, images: NDArray[Any], indices: Sequence[int] | None
    ) -> NDArray[np.uint8]:
        numbers = images.astype(np.float64)
        least, most = self._limits()
        if numbers.size and not (numbers.min() > least and numbers.max() < most):  # NaN is neither
            raise self._complaint(images, indices)
        if self.range == UNIT:
            numbers *= 255
        np.rint(numbers, out=numbers)
        np.clip(numbers, 0, 255, out=numbers)
        return numbers.astype(np.uint8)

    def _limits(self) -> tuple[float, float]:
        """Floats must lie between them."""
        if self.range == BYTES:
            return -0.5, 255.5
        tiny = 1e-6  # the bound itself is reached, and float32 rounds it
        return -OVERSHOOT - tiny, 1 + OVERSHOOT + tiny

    def _complaint(self, images: NDArray[Any], indices: Sequence[int] | None) -> ValueError:
        """What is wrong with the first image that is not in the range."""
        rows = images.reshape(len(images), -1).astype(np.float64)
        least, most = self._limits() if images.dtype.kind == "f" else (-0.5, self.range[1] + 0.5)
        wrong = ~((rows > least) & (rows < most)).all(axis=1)
        row = int(wrong.argmax())
        where = "" if indices is None else numbered(indices, row)
        return ValueError(f"{where}expected {self}, got {_describe(rows[row])}")

    def check_first(self, batches: Iterable[tuple[Sequence[int], NDArray[Any]]]) -> None:
        """Check the first images, and more where they are so dark that they may mean 0 to 1.

        Args:
            batches: the first images with their indices, read as they are asked for.

        Raises:
            ValueError: naming the first that is not in the range; naming `value_range`, if 0 to
                255 was assumed and none has a value above 1.
        """
        brightest, images = 0.0, 0
        for indices, rows in batches:
            self.to_bytes(rows, indices)
            brightest, images = max(brightest, float(rows.max())), images + len(rows)
            if self.is_settled(brightest):
                return
        self.require_bright(brightest, images)

    def is_settled(self, brightest: float) -> bool:
        """Whether images with this largest value leave no doubt about the range."""
        return self.told or self.range == UNIT or brightest >= 1 + OVERSHOOT

    def require_bright(self, brightest: float, images: int) -> None:
        """Refuse images that look like 0 to 1 although 0 to 255 was assumed.

        Args:
            brightest: the largest value of the first images; 0 means the same in both ranges.
            images: how many these are.

        Raises:
            ValueError: naming `value_range`.
        """
        if brightest > 0 and not self.is_settled(brightest):
            raise ValueError(
                f"expected {self}, got at most {brightest:g} in the first {images} images; say "
                "what they mean by value_range: [0, 1] (or [0, 255], if they are that dark) "
                f"{SETTINGS}"
            )

    def __str__(self) -> str:
        return f"values from 0 to {self.range[1]} ({self.reason})"


def decide(
    asked: ValueRange | None, attribute: Any, layout: str | None, dtype: np.dtype[Any]
) -> PixelValues:
    """The range of a file's images; the module says by what.

    Args:
        asked: what the user gave, if anything.
        attribute: the file's "value_range", if it has one.
        layout: name of a layout that defines 0 to 255, if it is one.
        dtype: of the stored images.

    Raises:
        ValueError: if the attribute is no range, or the images are not real numbers.
    """
    if dtype.kind not in "buif":
        raise ValueError(f"expected images of bool, integers or floats, got {dtype}")
    if asked is not None:
        return PixelValues(asked, f"as value_range says; stored as {dtype}", told=True)
    if attribute is not None:
        found = value_range(attribute, "attribute value_range")
        return PixelValues(found, f"as the file's attribute says; stored as {dtype}", told=True)
    if layout is not None:
        return PixelValues(BYTES, f"as {layout} hold them; stored as {dtype}", told=False)
    return PixelValues(BYTES if dtype.kind in "ui" else UNIT, f"stored as {dtype}", told=False)


def numbered(indices: Sequence[int], row: int) -> str:
    """What a complaint about a row of a batch begins with."""
    return f"image {indices[row]}: "


def value_range(given: Any, name: str) -> ValueRange:
    """A range that was given as two numbers.

    Raises:
        ValueError: if it is not one of the two, naming `name`.
    """
    numbers = np.ravel(np.asarray(given, dtype=object)).tolist()
    for known in (UNIT, BYTES):
        if numbers == [*known]:
            return known
    raise ValueError(f"{name}: expected [0, 1] or [0, 255], got {given}")


def _describe(numbers: NDArray[np.float64]) -> str:
    """The values of an image and what can be done about them."""
    if not np.isfinite(numbers).all():
        what = "NaN" if np.isnan(numbers).any() else "infinity"
        return f"{what}; mend that image or leave it out"
    low, high = numbers.min(), numbers.max()
    got = f"{low:g} to {high:g}"
    if 1 < high < 255.5 and low > -0.5:
        return f"{got}; if the images go from 0 to 255, say so: value_range [0, 255] {SETTINGS}"
    return f"{got}; store the images as 0 to 255 or 0 to 1"
