"""Contact sheets: what a data set holds, at a glance."""

from __future__ import annotations

from collections.abc import Sequence

from emorl.report import backend  # isort: skip  # before matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from emorl.data import Batch
from emorl.report.colours import paint, segment_colours
from emorl.report.scenes import pixels_of

_IN_A_ROW = 2  # images
_INCHES = 1.7  # of an image's side
_TABLE = 2.6  # sides that a table of factors is wide
_WIDEST, _FONT_SIZE = 6, 5.5  # characters of a factor; points


def contact_sheet(batch: Batch, title: str) -> Figure:
    """A batch's images, and beside each its segments and factors, as far as they are known.

    Args:
        batch: of a data set.
        title: of the sheet.
    """
    widths = [1.0] * (1 + (batch.mask is not None)) + [_TABLE] * bool(batch.factors)
    across = min(_IN_A_ROW, len(batch))
    down = -(-len(batch) // across)
    with backend.own_settings():
        figure = Figure((sum(widths) * across * _INCHES, (down + 0.3) * _INCHES))
        figure.suptitle(title, y=0.99)
        grid = figure.subplots(
            down, across * len(widths), squeeze=False, width_ratios=widths * across
        )
        figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.3 / (down + 0.3), 0.04, 0.06)
        for axes in grid.flat:
            axes.axis("off")
        for number in range(len(batch)):
            row, first = number // across, number % across * len(widths)
            _draw([*grid[row, first : first + len(widths)]], batch, number)
    return figure


def _draw(axes: Sequence[Axes], batch: Batch, number: int) -> None:
    image = pixels_of(batch.image[number])
    axes[0].imshow(image, interpolation="nearest")
    if batch.mask is not None:
        labels = batch.mask[number, 0].long().numpy()
        colours = segment_colours(range(int(labels.max()) + 1))
        axes[1].imshow(paint(labels, colours, image), interpolation="nearest")
    if batch.factors:
        table = _table({name: value[number] for name, value in batch.factors.items()})
        axes[-1].text(0, 1, table, va="top", fontsize=_FONT_SIZE, family="monospace")


def _table(factors: dict[str, Tensor]) -> str:
    """The factors of each entity that is there, a line each, below their names cut short."""
    visibility = factors.get("visibility")
    entities = range(len(next(iter(factors.values()))))
    there = [*entities] if visibility is None else visibility.nonzero()[:, 0].tolist()
    columns = [
        [name[:_WIDEST] if part == 0 else "", *map(_number, values.tolist())]
        for name, value in factors.items()
        if name != "visibility"
        for part, values in enumerate(value[there].reshape(len(there), -1).unbind(1))
    ]
    numbers = ["", *map(str, there)]
    rows = zip(numbers, *columns, strict=True)
    return "\n".join(" ".join(f"{cell:>{_WIDEST}}" for cell in row)[4:] for row in rows)


def _number(value: float) -> str:
    return f"{round(value, 2):g}"
