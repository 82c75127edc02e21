"""Image panels on a grid of whole pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emorl.report.backend import own_settings
from emorl.report.colours import Pixels

DPI = 150
SMALLEST_PANEL = 120  # pixels; images are enlarged by the least whole factor that reaches it
GAP = 10
FRAME = 3
HEADER_HEIGHT = 32
BAR_WIDTH = 100
TEXT_SIZE = 8  # points
CHARACTER_WIDTH = 11  # pixels, at this size
INK = "#222222"
THIN_FRAME = np.full(3, 0.6)


class PanelGrid:
    """Rows and columns of equal image panels that become one figure.

    The panels are put together as one image, where every image pixel is a square of whole screen
    pixels. (Matplotlib axes for each of a hundred panels would take seconds.)

    Args:
        labels: text left of each row.
        headers: text above each column.
        image_size: height and width of the images.
        colour_map: matplotlib's name, for panels of numbers from 0 to 1; adds a colour bar.
        bar_label: text at the colour bar.
    """

    def __init__(
        self,
        labels: Sequence[str],
        headers: Sequence[str],
        image_size: tuple[int, int],
        *,
        colour_map: str | None = None,
        bar_label: str = "",
    ) -> None:
        self._labels, self._headers = labels, headers
        self._colour_map, self._bar_label = colour_map, bar_label
        scale = max(1, math.ceil(SMALLEST_PANEL / min(image_size)))
        self._panel = (image_size[0] * scale, image_size[1] * scale)
        longest = max(len(line) for label in labels for line in label.split("\n"))
        self._left = longest * CHARACTER_WIDTH + GAP
        y, x = self._corner(len(labels), len(headers))
        width = x + (BAR_WIDTH if colour_map else 0)
        self._canvas = np.full((y, width, 3), 255, dtype=np.uint8)

    def show(self, row: int, column: int, pixels: Pixels, frame: Pixels | None = None) -> None:
        """Put [H, W, 3] colours, or [H, W] numbers, into a panel, with a frame of that colour."""
        if pixels.ndim == 2:
            pixels = matplotlib.colormaps[self._colour_map or "gray"](pixels)[..., :3]
        height, width = self._panel
        y, x = self._corner(row, column)
        border = 1 if frame is None else FRAME
        around = slice(y - border, y + height + border), slice(x - border, x + width + border)
        self._canvas[around] = _bytes(THIN_FRAME if frame is None else frame)
        rows = np.arange(height) * pixels.shape[0] // height
        columns = np.arange(width) * pixels.shape[1] // width
        self._canvas[y : y + height, x : x + width] = _bytes(pixels)[rows[:, None], columns]

    @own_settings()
    def figure(self) -> Figure:
        """The panels with their labels, headers and colour bar."""
        height, width, _ = self._canvas.shape
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(
            self._canvas, interpolation="nearest", aspect="auto", extent=(0, width, height, 0)
        )
        style: dict[str, Any] = {"size": TEXT_SIZE, "color": INK}
        for column, text in enumerate(self._headers):
            y, x = self._corner(0, column)
            axes.text(x + self._panel[1] / 2, y - 10, text, ha="center", **style)
        for row, text in enumerate(self._labels):
            y, x = self._corner(row, 0)
            middle = y + self._panel[0] / 2
            axes.text(x - GAP, middle, text, ha="right", va="center", linespacing=1.3, **style)
        if self._colour_map:
            self._add_colour_bar(figure)
        return figure

    def _add_colour_bar(self, figure: Figure) -> None:
        height, width, _ = self._canvas.shape
        y, x = self._corner(0, len(self._headers))
        bottom = height - y - self._panel[0]
        axes = figure.add_axes((x / width, bottom / height, 14 / width, self._panel[0] / height))
        bar = figure.colorbar(ScalarMappable(cmap=self._colour_map), cax=axes, ticks=[0, 0.5, 1])
        bar.ax.tick_params(labelsize=TEXT_SIZE - 1, length=2, width=0.4, colors=INK)
        bar.set_label(self._bar_label, size=TEXT_SIZE - 1, color=INK)

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        """Top and left edge of a panel, in pixels from the figure's upper left corner."""
        height, width = self._panel
        return HEADER_HEIGHT + row * (height + GAP), self._left + column * (width + GAP)


def _bytes(pixels: Pixels) -> NDArray[np.uint8]:
    return np.rint(255 * pixels).astype(np.uint8)
