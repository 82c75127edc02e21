"""Picture files, read with Pillow: colours as they are meant to be seen, and label maps.

PNG, JPEG, WebP and BMP; bits, grey, palettes, colours and CMYK, with and without transparency. A
picture is turned as its camera says (EXIF). What is transparent shows black. Grey of 16 bits goes
from 0 to 65535, as PNG defines it; of colours with 16 bits Pillow reads the upper eight.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from emorl.data.readers.axes import labels_of
from emorl.data.transforms import Box, Shape
from emorl.data.values import SETTINGS, PixelValues
from emorl.memory import require_memory
from emorl.paths import require_regular

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FULL_16 = 2**16 - 1
_DARK_16 = 255  # grey of 16 bits with nothing above it may be meant from 0 to 255
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_SHOWN_16 = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_BITS = "1"
_LABELS = (_BITS, "L", "P", *_SHOWN_16)
_BIT_DEPTH = 24  # byte of a PNG that tells how many bits a number has
_ORIENTATION = 0x0112  # EXIF; from 5 on the picture lies on its side
# Pixels that a byte can stand for: deflate makes at most 1032 bytes out of one, and a byte of a
# PNG holds up to eight pixels; JPEG and BMP's run lengths make fewer. WebP stores a picture of a
# single colour in a few bytes, whatever its size.
_PIXELS_PER_BYTE = 8 * 1032


@dataclass(frozen=True)
class Header:
    """What a picture file says of itself.

    Attributes:
        shape: height and width as shown.
        mode: Pillow's name of the pixels' kind.
    """

    shape: Shape
    mode: str

    @property
    def is_16_bit(self) -> bool:
        """Whether it is grey of 16 bits."""
        return self.mode in _SHOWN_16


def read_header(path: str | Path) -> Header:
    """What a file declares; no pixel is read.

    Raises:
        ValueError: naming the file, if it is no picture, or declares more than it or this machine
            can hold.
    """
    with _opened(path) as file:
        return Header(_shown_shape(file), file.mode)


def read_headers(paths: Sequence[str], *, lenient: bool) -> dict[str, Header]:
    """The headers of some files.

    Args:
        paths: of the files.
        lenient: leave out those that have none, unless that is all.

    Raises:
        ValueError: as `read_header` does.
    """
    headers: dict[str, Header] = {}
    wrong: list[ValueError] = []
    for path in paths:
        try:
            headers[path] = read_header(path)
        except ValueError as error:
            wrong.append(error)
            if not lenient:
                break
    if wrong and not (lenient and headers):
        raise wrong[0]
    return headers


def read_colours(
    path: str | Path, values: PixelValues | None, least: Shape | None = None
) -> NDArray[np.uint8]:
    """A picture as it is shown, uint8 [H, W, 3].

    Args:
        path: the file.
        values: what the numbers mean, where the user has said so; None for the format's meaning.
        least: height and width that are enough: a large JPEG is then decoded at a half, a quarter
            or an eighth of its size, which takes a tenth of the time. None reads all pixels.

    Raises:
        ValueError: naming the file, if it is damaged, or its numbers are not in their range.
    """
    with _opened(path) as file:
        _require_checksums(file, path)
        if least is not None:
            upright = _shown_shape(file) == (file.height, file.width)
            file.draft(None, least[::-1] if upright else least)
        numbers = _numbers(ImageOps.exif_transpose(file))
        if values is not None:
            numbers = values.to_bytes(numbers[None])[0]
        elif numbers.dtype == np.bool_:
            numbers = numbers * np.uint8(255)
        elif numbers.dtype != np.uint8:
            numbers = _upper_bits(numbers)
    return numbers if numbers.ndim == 3 else np.repeat(numbers[..., None], 3, axis=2)


def read_labels(path: str | Path, shape: Shape, most: int) -> NDArray[Any]:
    """A label map, [H, W]: the numbers of its pixels, or of a palette's entries, turned as it says.

    Args:
        path: the file.
        shape: height and width that it must have, those of its picture.
        most: the largest label that there may be; decides between uint8 and int32.

    Raises:
        ValueError: naming the file, if it is damaged or no such label map.
    """
    with _opened(path) as file:
        if file.format != "PNG":
            raise ValueError(f"expected a label map as PNG, which keeps numbers, got {file.format}")
        if file.mode not in _LABELS:
            raise ValueError(
                "expected a label map (grey or palette; a pixel's number is its object's, "
                f"0 the background), got {file.mode}"
            )
        _require_checksums(file, path)
        labels = np.array(ImageOps.exif_transpose(file))
        if (found := labels.shape) != shape:
            raise ValueError(
                f"expected a label map of {shape[0]}x{shape[1]} as its picture, "
                f"got {found[0]}x{found[1]}"
            )
        return labels_of(labels // _scale(path) if file.mode == "L" else labels, most)


def require_bright(
    pictures: Mapping[str, Header] | Mapping[Path, Header], *, lenient: bool = False
) -> None:
    """Refuse pictures that would all look black, since they go from 0 to less than they could.

    That are grey of 16 bits which goes from 0 to 255, and bytes from 0 to 1.

    Args:
        pictures: the first pictures by path.
        lenient: pass over those that are damaged.

    Raises:
        ValueError: naming the first.
    """
    for deep, most, cure in ((True, _DARK_16, "[0, 255]"), (False, 1, "[0, 1]")):
        paths = [p for p, h in pictures.items() if h.is_16_bit == deep and h.mode != _BITS]
        brightest = 0
        for path in paths:
            try:
                brightest = max(brightest, _brightest(path))
            except ValueError:
                if not lenient:
                    raise
            if brightest > most:
                break
        if 0 < brightest <= most:
            raise ValueError(
                f"{paths[0]}: {16 if deep else 8} bits, but nothing above {most} in the first "
                f"{len(paths)} such pictures; if they go from 0 to {most}, say so: value_range "
                f"{cure} {SETTINGS}"
            )


def framed(pixels: NDArray[Any], box: Box, shape: Shape, method: str) -> NDArray[Any]:
    """A region of a picture [H, W, ...], resized to `shape` by a filter of Pillow."""
    top, bottom, left, right = box
    region = np.ascontiguousarray(pixels[top:bottom, left:right])
    if region.shape[:2] == shape:
        return region
    small = Image.fromarray(region).resize(shape[::-1], Image.Resampling[method.upper()])
    return np.array(small)


def _brightest(path: str | Path) -> int:
    """The largest number of a picture."""
    with _opened(path) as file:
        _require_checksums(file, path)  # first: Pillow asks for as much memory as a chunk declares
        return int(_numbers(file).max())


def _scale(path: str | Path) -> int:
    """What Pillow multiplies the numbers of a PNG of grey with, so that the largest is 255."""
    with open(path, "rb") as file:
        bits = file.read(_BIT_DEPTH + 1)[_BIT_DEPTH]
    return 255 // (2**bits - 1)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An opened picture; whatever Pillow raises, as one line that begins with the file's name."""
    require_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: of what is an error here, or harmless
            with Image.open(path, formats=_FORMATS) as file:
                _require_plausible(file, os.path.getsize(path))
                yield file
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        text = " ".join(str(getattr(error, "strerror", None) or error).split())
        if isinstance(error, UnidentifiedImageError):
            text = f"not a picture ({', '.join(_FORMATS)})"
        raise ValueError(f"{path}: {text or type(error).__name__}") from None


def _require_plausible(file: Image.Image, stored: int) -> None:
    """Refuse what would take more memory than a picture does, before it is taken."""
    pixels = file.width * file.height
    declared = f"declares {file.height}x{file.width} pixels"
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{declared}, more than Pillow's limit of {Image.MAX_IMAGE_PIXELS}")
    if file.format != "WEBP" and pixels > _PIXELS_PER_BYTE * stored:
        raise ValueError(f"{declared}, but only {stored} bytes are stored")
    require_memory(4 * pixels, declared)


def _require_checksums(file: Image.Image, path: str | Path) -> None:
    """Compare a PNG's checksums: Pillow leaves out those behind the last row of pixels."""
    if file.format == "PNG":
        with Image.open(path, formats=("PNG",)) as again:
            again.verify()


def _shown_shape(file: Image.Image) -> Shape:
    if file.format == "PNG" and "exif" not in file.info:  # Pillow would read all pixels for it
        return file.height, file.width
    on_its_side = file.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (file.width, file.height) if on_its_side else (file.height, file.width)


def _numbers(picture: Image.Image) -> NDArray[Any]:
    """Bits and grey of 16 bits as stored, [H, W]; else colours, uint8 [H, W, 3]."""
    if picture.mode == _BITS or picture.mode in _SHOWN_16:
        return np.array(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture)
    return np.array(picture.convert("RGB"))


def _upper_bits(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    """Numbers from 0 to 65535 as 0 to 255, rounded."""
    if numbers.size and not (numbers.min() >= 0 and numbers.max() <= FULL_16):
        raise ValueError(
            f"expected grey from 0 to {FULL_16}, got {numbers.min()} to {numbers.max()}"
        )
    return ((numbers.astype(np.uint32) * 255 + FULL_16 // 2) // FULL_16).astype(np.uint8)
