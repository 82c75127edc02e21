"""The 19 tetrominoes of the Tetrominoes data set: their cells, overlaps and pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FRAME = 35
"""Height and width of an image, pixels."""
BLOCK = 5
"""Height and width of one of the four blocks of a tetromino, pixels."""

SHAPES = {
    1: "####",
    2: "#/#/#/#",
    3: "###/#..",
    4: "#../###",
    5: "..#/###",
    6: "###/..#",
    7: "##/.#/.#",
    8: ".#/.#/##",
    9: "##/#./#.",
    10: "#./#./##",
    11: "##./.##",
    12: ".##/##.",
    13: ".#/##/#.",
    14: "#./##/.#",
    15: ".#./###",
    16: "###/.#.",
    17: ".#/##/.#",
    18: "#./##/#.",
    19: "##/##",
}
"""Shape id -> rows from top to bottom, separated by "/"; "#" = block."""

TILE = (
    (191, 255, 255, 255, 223),
    (127, 159, 159, 159, 191),
    (127, 159, 159, 159, 191),
    (127, 159, 159, 159, 191),
    (95, 63, 63, 63, 127),
)
"""Grey levels of a block's pixels; each colour channel is this times 0 or 1."""

_REACH = 4 * BLOCK  # objects whose corners are this far apart in one axis cannot overlap


def _cells(number: int) -> list[tuple[int, int]]:
    rows = SHAPES[number].split("/")
    return [(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell == "#"]


@dataclass(frozen=True)
class ShapeTables:
    """Look-up tables by shape id; row 0 (the background) is unused.

    Attributes:
        height, width: of the bounding box in pixels, int64 [20].
        offset: of each pixel from the top left corner in the flat image, int64 [20, 100].
        shade: grey level of each of those pixels, uint8 [100].
        overlaps: whether shape b at (row, column) from shape a overlaps it, bool
            [20 * 20 * 41 * 41].
    """

    height: Tensor
    width: Tensor
    offset: Tensor
    shade: Tensor
    overlaps: Tensor

    @classmethod
    def on(cls, device: torch.device | str) -> ShapeTables:
        """The tables on `device`."""
        cells = torch.tensor([[(0, 0)] * 4] + [_cells(number) for number in SHAPES])
        inner = torch.arange(BLOCK)
        row = (cells[:, :, :1] * BLOCK + inner)[..., :, None]  # [20, 4, 5, 1]
        column = (cells[:, :, 1:] * BLOCK + inner)[..., None, :]
        size = (cells.amax(dim=1) + 1) * BLOCK
        tables = cls(
            height=size[:, 0],
            width=size[:, 1],
            offset=(row * FRAME + column).flatten(1),
            shade=torch.tensor(TILE, dtype=torch.uint8).ravel().repeat(4),
            overlaps=_overlaps(cells),
        )
        return cls(**{name: value.to(device) for name, value in vars(tables).items()})

    def overlap(self, shape: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Whether any two objects of a scene share a pixel.

        Args:
            shape: ids, int64 [..., n].
            top: rows of the top left corners, pixels, int64 [..., n].
            left: columns of the top left corners, pixels, int64 [..., n].

        Returns:
            bool [...].
        """
        count = shape.shape[-1]
        first, second = torch.triu_indices(count, count, offset=1, device=shape.device)
        entry = shape.index_select(-1, first) * len(self.height) + shape.index_select(-1, second)
        for corner in (top, left):
            distance = corner.index_select(-1, second) - corner.index_select(-1, first)
            entry = entry * (2 * _REACH + 1) + distance.clamp(-_REACH, _REACH) + _REACH
        return self.overlaps.take(entry).any(dim=-1)


def _overlaps(cells: Tensor) -> Tensor:
    """`ShapeTables.overlaps` from the cells [20, 4, 2] of each shape."""
    shift = torch.arange(-_REACH, _REACH + 1)
    apart = (cells[None, :, None] - cells[:, None, :, None]) * BLOCK  # [20, 20, 4, 4, 2]
    row, column = apart.flatten(2, 3).unbind(-1)  # [20, 20, 16]
    rows = (row[..., None] + shift).abs() < BLOCK  # [20, 20, 16, 41]
    columns = (column[..., None] + shift).abs() < BLOCK
    return torch.einsum("abpr,abpc->abrc", rows.float(), columns.float()).ravel() > 0


def paint(
    tables: ShapeTables, shape: Tensor, top: Tensor, left: Tensor, color: Tensor
) -> tuple[Tensor, Tensor]:
    """Images and label maps of objects that neither overlap nor leave the frame.

    Args:
        tables: on the tensors' device.
        shape: ids 1 to 19, int64 [B, n].
        top: rows of the top left corners, pixels, int64 [B, n].
        left: columns of the top left corners, pixels, int64 [B, n].
        color: bits 1 red, 2 green, 4 blue, int64 [B, n].

    Returns:
        uint8 image [B, 3, 35, 35] and label map [B, 1, 35, 35], label 1.. in the order given.
    """
    batch, count = shape.shape
    pixel = (tables.offset[shape] + (top * FRAME + left)[..., None]).flatten(1)  # [B, n * 100]
    bits = torch.tensor([[1], [2], [4]], device=color.device)
    lit = (color[:, None] & bits > 0).to(torch.uint8)  # [B, 3, n]
    shades = (lit[..., None] * tables.shade).flatten(2)
    label = torch.arange(1, count + 1, dtype=torch.uint8, device=shape.device)
    labels = label.repeat_interleave(len(tables.shade)).expand(batch, -1)
    image = torch.zeros(batch, 3, FRAME**2, dtype=torch.uint8, device=shape.device)
    mask = torch.zeros(batch, FRAME**2, dtype=torch.uint8, device=shape.device)
    image.scatter_(2, pixel[:, None].expand(-1, 3, -1), shades)
    mask.scatter_(1, pixel, labels)
    return image.unflatten(2, (FRAME, FRAME)), mask.view(batch, 1, FRAME, FRAME)


def render(factors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Images and label maps of scenes described as in the published files.

    Args:
        factors: shape, x (top row), y (left column), [B, E], and color [B, E, 3] in {0, 1};
            entity 0 is the background.

    Returns:
        uint8 image [B, 3, 35, 35] and label map [B, 1, 35, 35]; entity e has label e.

    Raises:
        ValueError: if a shape id is unknown, an object leaves the frame, or two overlap.
    """
    shape, top, left = (factors[name][:, 1:].long() for name in ("shape", "x", "y"))
    bits = torch.tensor([1, 2, 4], device=shape.device)
    color = (factors["color"][:, 1:].long() * bits).sum(-1)
    tables = ShapeTables.on(shape.device)
    if ((shape < 1) | (shape > len(SHAPES))).any():
        raise ValueError(f"tetrominoes: expected shapes 1 to {len(SHAPES)}, got {shape.tolist()}")
    below, beyond = top + tables.height[shape], left + tables.width[shape]
    if ((top < 0) | (left < 0) | (below > FRAME) | (beyond > FRAME)).any():
        raise ValueError(f"tetrominoes: an object leaves the {FRAME} x {FRAME} frame")
    if tables.overlap(shape, top, left).any():
        raise ValueError("tetrominoes: objects overlap")
    return paint(tables, shape, top, left, color)
