"""Image panels on a grid of whole pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

DPI = 150
SMALLEST_PANEL = 120  # pixels; images are enlarged by the least whole factor that reaches it
GAP = 8
HEADER_HEIGHT = 32
BAR_WIDTH = 100
TEXT_SIZE = 8  # points
CHARACTER_WIDTH = 11  # pixels, at this size
INK = "#222222"
THIN_FRAME = "#999999"


class PanelGrid:
    """Rows and columns of equal image panels, for one `figure`.

    Every image pixel becomes a square of whole screen pixels, and all panels line up.

    Args:
        labels: text left of each row.
        headers: text above each column.
        image_size: height and width of the images.
        bar: leave room for a colour bar.
    """

    def __init__(
        self,
        labels: Sequence[str],
        headers: Sequence[str],
        image_size: tuple[int, int],
        *,
        bar: bool = False,
    ) -> None:
        scale = max(1, math.ceil(SMALLEST_PANEL / min(image_size)))
        self._panel = (image_size[1] * scale, image_size[0] * scale)
        longest = max(len(line) for label in labels for line in label.split("\n"))
        self._label_width = longest * CHARACTER_WIDTH
        self._columns = len(headers)
        width, height = self._corner(len(labels), self._columns)
        self._size = (width + (BAR_WIDTH if bar else 0), height)
        size = (self._size[0] / DPI, self._size[1] / DPI)
        self.figure = Figure(figsize=size, dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        for column, text in enumerate(headers):
            x, y = self._corner(0, column)
            self._text(x + self._panel[0] / 2, y - 10, text, ha="center", va="baseline")
        for row, text in enumerate(labels):
            x, y = self._corner(row, 0)
            self._text(x - GAP, y + self._panel[1] / 2, text, ha="right", va="center")

    def show(
        self,
        row: int,
        column: int,
        pixels: NDArray[np.float64],
        frame: NDArray[np.float64] | None = None,
        **imshow: Any,
    ) -> AxesImage:
        """Draw [H, W, 3] or [H, W] pixels into a panel, in a thick frame of the given colour."""
        axes = self.figure.add_axes(self._box(*self._corner(row, column), *self._panel))
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(THIN_FRAME if frame is None else tuple(frame))
            spine.set_linewidth(0.4 if frame is None else 2.0)
        return axes.imshow(pixels, interpolation="nearest", aspect="auto", **imshow)

    def colour_bar(self, mappable: AxesImage, text: str) -> None:
        """A bar from 0 to 1 beside the first row."""
        x, y = self._corner(0, self._columns)
        axes = self.figure.add_axes(self._box(x + 4, y, 14, self._panel[1]))
        bar = self.figure.colorbar(mappable, cax=axes, ticks=[0, 0.5, 1])
        bar.outline.set_linewidth(0.4)
        bar.ax.tick_params(labelsize=TEXT_SIZE - 1, length=2, width=0.4, colors=INK)
        bar.set_label(text, size=TEXT_SIZE - 1, color=INK)

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        """Left and top edge of a panel, in pixels from the figure's upper left corner."""
        x = self._label_width + GAP + column * (self._panel[0] + GAP)
        return x, HEADER_HEIGHT + row * (self._panel[1] + GAP)

    def _box(self, x: int, y: int, width: int, height: int) -> tuple[float, float, float, float]:
        full_width, full_height = self._size
        bottom = full_height - y - height
        return x / full_width, bottom / full_height, width / full_width, height / full_height

    def _text(self, x: float, y: float, text: str, **alignment: Any) -> None:
        place = (x / self._size[0], 1 - y / self._size[1])
        self.figure.text(*place, text, size=TEXT_SIZE, color=INK, linespacing=1.3, **alignment)
