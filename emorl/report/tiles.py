"""Pictures made of pictures: label maps, overlays, contact sheets, traversals as grid and film.

Pixels are uint8 [H, W, 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from emorl.extras import require_package
from emorl.report.colours import PALETTE
from emorl.runs.outputs import MADE_BY

Bytes = NDArray[np.uint8]
Labels = NDArray[np.integer[Any]]
Colour = tuple[int, ...]
PAPER, _INK = (255, 255, 255), (40, 40, 40)
_GAP, _TEXT = 2, 14
_LEAST_SIDE = 64  # smaller pictures are enlarged, pixel by pixel
_FRAMES_PER_SECOND = 8
_ROWS = 64  # blended at once: as floats a whole picture takes many times its memory
_SHARE = 0.65  # of a slot's colour in an overlay
_OUTLINE = 240  # pixels of a picture's longer side for each of an outline's width


def label_png(labels: Labels) -> bytes:
    """A label map [H, W] as a PNG whose pixels are the labels, shown in the slots' colours.

    Raises:
        ValueError: for a label below 0 or above 255, which such a file cannot hold.
    """
    if labels.size and not 0 <= labels.min() <= labels.max() <= 255:
        raise ValueError(f"expected labels from 0 to 255, got {labels.min()} to {labels.max()}")
    image = Image.fromarray(labels.astype(np.uint8, copy=False), "P")
    image.putpalette(bytes(colours_of_slots(256).ravel()))
    return _png(image)


def overlay(image: Bytes, labels: Labels) -> Bytes:
    """A picture in grey with each slot's colour over it, and dark outlines between segments."""
    colours = _SHARE * colours_of_slots(int(labels.max()) + 1)
    outlines = _outlines(labels)
    painted = np.empty_like(image)
    for start in range(0, len(image), _ROWS):
        rows = slice(start, start + _ROWS)
        grey = image[rows].mean(axis=2, keepdims=True)
        mixed = colours[labels[rows]] + (1 - _SHARE) * grey
        painted[rows] = np.where(outlines[rows, :, None], _INK, np.rint(mixed))
    return painted


def colours_of_slots(count: int) -> Bytes:
    """A colour for each slot, [count, 3]."""
    palette: Bytes = np.rint(255 * PALETTE[np.arange(count) % len(PALETTE)]).astype(np.uint8)
    return palette


def thumbnail(image: Bytes, side: int) -> Bytes:
    """A picture fitted into a square of that side, on paper; a pixel wide at least."""
    height, width = image.shape[:2]
    longer = max(height, width)
    method = Image.Resampling.BICUBIC if longer > side else Image.Resampling.NEAREST
    size = max(1, round(width * side / longer)), max(1, round(height * side / longer))
    small = Image.fromarray(image).resize(size, method)
    sheet = Image.new("RGB", (side, side), PAPER)
    sheet.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return np.asarray(sheet)


def tiled(
    rows: Sequence[Sequence[Bytes]], labels: Sequence[str] = (), headers: Sequence[str] = ()
) -> Bytes:
    """Pictures of one size in rows and columns.

    Args:
        rows: of pictures, as many in each.
        labels: a text for each row, or none; it may have several lines.
        headers: a text for each column, or none.

    Raises:
        ValueError: without pictures.
    """
    if not rows or not rows[0]:
        raise ValueError(f"expected a picture or more, got {len(rows)} rows without one")
    enlarged = [[_enlarged(picture) for picture in pictures] for pictures in rows]
    height, width = enlarged[0][0].shape[:2]
    left = max(map(_text_width, labels)) + 2 * _GAP if labels else 0
    top = _TEXT if headers else 0
    size = (
        left + len(rows[0]) * (width + _GAP),
        top + len(rows) * (height + _GAP),
    )
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(headers):
        draw.text((left + column * (width + _GAP), 1), text, _INK)
    for row, pictures in enumerate(enlarged):
        y = top + row * (height + _GAP)
        if labels:
            draw.text((_GAP, y + height // 2), labels[row], _INK, anchor="lm")
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (left + column * (width + _GAP), y))
    return np.asarray(sheet)


def framed(picture: Bytes, text: str, colour: Colour = PAPER) -> Bytes:
    """A picture with a frame of a colour around it and a text above."""
    large = Image.fromarray(_enlarged(picture))
    size = large.width + 2 * _GAP, large.height + 2 * _GAP + _TEXT
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 1), text, _INK)
    draw.rectangle((0, _TEXT, size[0] - 1, size[1] - 1), colour)
    sheet.paste(large, (_GAP, _TEXT + _GAP))
    return np.asarray(sheet)


def stacked(parts: Sequence[Bytes | str]) -> Bytes:
    """Pictures and lines of text, one below the other."""
    pictures = [_line(part) if isinstance(part, str) else part for part in parts]
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate(
        [
            np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), constant_values=255)
            for x in pictures
        ]
    )


def captioned(pictures: Sequence[Bytes], text: str) -> Bytes:
    """Pictures of one size beside each other with a line of text below, shortened to fit.

    The text has escapes for all but ASCII: Pillow's own font lacks the rest.
    """
    row = tiled([pictures])
    line = _shortened(text.encode("unicode_escape").decode(), row.shape[1] - 2 * _GAP)
    return stacked([row, line])


def png(image: Bytes) -> bytes:
    """A picture as the bytes of a PNG file."""
    return _png(Image.fromarray(image))


def gif(frames: Sequence[Bytes]) -> bytes:
    """Frames of one size as an endless GIF, there and back again."""
    pictures = [Image.fromarray(frame) for frame in there_and_back(frames)]
    buffer = BytesIO()
    pictures[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=1000 // _FRAMES_PER_SECOND,
        loop=0,
        comment=MADE_BY,
    )
    return buffer.getvalue()


def write_mp4(path: Path, frames: Sequence[Bytes]) -> None:
    """Write frames of one size as a film, there and back again.

    Raises:
        ModuleNotFoundError: without imageio-ffmpeg.
    """
    require_package("imageio_ffmpeg")
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    even = height + height % 2, width + width % 2  # H.264 wants even numbers
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (even[1], even[0]),
        fps=_FRAMES_PER_SECOND,
        macro_block_size=2,
        codec="libx264",
        output_params=[
            "-f",
            "mp4",
            "-metadata",
            f"comment={MADE_BY}",
        ],  # unfinished files end otherwise
    )
    writer.send(None)
    for frame in there_and_back(frames):
        whole = np.full((*even, 3), 255, dtype=np.uint8)
        whole[:height, :width] = frame
        writer.send(whole)
    writer.close()


def there_and_back(frames: Sequence[Bytes]) -> list[Bytes]:
    """The frames, then those between the ends in reverse."""
    return [*frames, *frames[-2:0:-1]]


def _outlines(labels: Labels) -> NDArray[np.bool_]:
    """The pixels [H, W] just below or right of another segment's: wider lines in large pictures."""
    outlines = np.zeros(labels.shape, dtype=bool)
    for distance in range(1, max(1, max(labels.shape) // _OUTLINE) + 1):
        outlines[distance:] |= labels[distance:] != labels[:-distance]
        outlines[:, distance:] |= labels[:, distance:] != labels[:, :-distance]
    return outlines


def _shortened(text: str, width: int) -> str:
    """Text without as much of its middle as is needed to fit into so many pixels."""
    short, kept = text, min(len(text), width)  # no character is narrower than a pixel
    while _text_width(short) > width and kept:
        kept -= 1
        short = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
    return short


def _text_width(text: str) -> int:
    """Pixels that a text takes, of one line or several."""
    length = ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength
    return int(max(map(length, text.split("\n"))))


def _line(text: str) -> Bytes:
    """A line of text on paper."""
    sheet = Image.new("RGB", (_text_width(text) + 2 * _GAP, _TEXT), PAPER)
    ImageDraw.Draw(sheet).text((_GAP, 0), text, _INK)
    return np.asarray(sheet)


def _enlarged(picture: Bytes) -> Bytes:
    """A picture with each pixel repeated until both sides have `_LEAST_SIDE`."""
    scale = -(-_LEAST_SIDE // min(picture.shape[:2]))
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    about = PngInfo()
    about.add_text("Software", MADE_BY)
    image.save(buffer, "PNG", pnginfo=about)
    return buffer.getvalue()
