"""Contact sheets: what a data set holds, at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emorl.report import backend  # isort: skip  # before matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from emorl.data import Batch
from emorl.paths import in_line
from emorl.report.colours import fixed_colours, paint
from emorl.report.scenes import pixels_of

_IN_A_ROW = 2  # images
_INCHES = 1.7  # of an image's side
_FONT_SIZE = 7.5  # points
_CHARACTER, _LINE = 0.602 * _FONT_SIZE / 72, 1.25 * _FONT_SIZE / 72  # inches, of DejaVu Sans Mono
_NUMBER, _GAP = 4, 3  # characters: an entity's number and its colour's square; behind a table
_MOST_ENTITIES = 11  # whose factors have room beside an image
_MOST_NUMBERS = 4  # of an entity's factor


_Table = list[tuple[int | None, str]]  # lines, each of an entity, or of none


def contact_sheet(batch: Batch, title: str) -> Figure:
    """A batch's images, and beside each its segments and factors, as far as they are known.

    Args:
        batch: of a data set.
        title: of the sheet.

    Raises:
        ValueError: without images.
    """
    if not len(batch):
        raise ValueError("contact_sheet: expected an image or more, got none")
    tables = _tables(batch)
    widths = [1.0] * (1 + (batch.mask is not None))
    if tables:
        longest = max(len(line) for table in tables for _, line in table)
        widths.append((_NUMBER + longest + _GAP) * _CHARACTER / _INCHES)
    across = min(_IN_A_ROW, len(batch))
    down = -(-len(batch) // across)
    with backend.own_settings():
        figure = Figure((sum(widths) * across * _INCHES, (down + 0.3) * _INCHES))
        figure.suptitle(title, y=0.99, parse_math=False)
        grid = figure.subplots(
            down, across * len(widths), squeeze=False, width_ratios=widths * across
        )
        figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.3 / (down + 0.3), 0.04, 0.06)
        for axes in grid.flat:
            axes.axis("off")
        for number in range(len(batch)):
            row, first = number // across, number % across * len(widths)
            places = [*grid[row, first : first + len(widths)]]
            _draw(places, batch, number)
            if tables:
                _write(places[-1], tables[number], coloured=batch.mask is not None)
    return figure


def _tables(batch: Batch) -> list[_Table]:
    """A table of each image's factors; none where they are not known."""
    images = [{name: x[n] for name, x in batch.factors.items()} for n in range(len(batch))]
    return [_table(factors) for factors in images if factors]


def _draw(axes: Sequence[Axes], batch: Batch, number: int) -> None:
    image = pixels_of(batch.image[number])
    axes[0].imshow(image, interpolation="nearest")
    if batch.mask is not None:
        labels = batch.mask[number, 0].long().numpy()
        colours = fixed_colours(np.unique(labels).tolist())
        axes[1].imshow(paint(labels, colours, image), interpolation="nearest")


def _write(axes: Axes, table: _Table, *, coloured: bool) -> None:
    """Write an image's table, before each entity's line its number and its segment's colour."""
    entities = [entity for entity, _ in table if entity is not None]
    colours = fixed_colours(entities)
    style: dict[str, Any] = {"va": "top", "fontsize": _FONT_SIZE, "family": "monospace"}
    style["parse_math"] = False  # names may have dollars
    for line, (entity, text) in enumerate(table):
        height = 1 - line * _LINE / _INCHES
        axes.text(0, height, " " * _NUMBER + text, style)
        if entity is not None:
            axes.text(0, height, f"{entity:>{_NUMBER}}", style)
            if coloured:
                axes.text(0, height, "\N{BLACK SQUARE}", style, color=colours[entity])


def _table(factors: dict[str, Tensor]) -> _Table:
    """The names of an image's factors, then the numbers of each entity that is there."""
    visibility = factors.get("visibility")
    most = max(map(len, factors.values()))
    there = [*range(most)] if visibility is None else visibility.nonzero()[:, 0].unique().tolist()
    shown = there[:_MOST_ENTITIES]
    columns = [
        _column(in_line(name), value if value.dim() > 1 else value[:, None], shown)
        for name, value in factors.items()
    ]
    lines = ["".join(cells) for cells in zip(*columns, strict=True)]
    more = [(None, f"  and {len(there) - len(shown)} more")] if len(there) > len(shown) else []
    return [*zip([None, *shown], lines, strict=True), *more]


def _column(name: str, values: Tensor, entities: Sequence[int]) -> list[str]:
    """A factor's name and its numbers [E, n], as cells of one width; empty where there are none."""
    more = " ..." if values.shape[1] > _MOST_NUMBERS else ""
    rows = [
        " ".join(f"{_number(x):>5}" for x in numbers) + more
        for numbers in values[:, :_MOST_NUMBERS].tolist()
    ]
    cells = [rows[e] if e < len(rows) else "" for e in entities]
    width = max(map(len, (name, *cells)))
    return [f"  {cell:>{width}}" for cell in (name, *cells)]


def _number(value: float) -> str:
    return f"{round(value, 2):g}"
