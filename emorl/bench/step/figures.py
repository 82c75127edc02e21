"""How a step's cost grows, and how many images a second there are, from a record of the suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from emorl.bench.figures import STYLES, caption_of, new_figure, plain_numbers, write_caption
from emorl.bench.step import fits
from emorl.bench.step.build import PARTS
from emorl.bench.step.cases import MODELS
from emorl.bench.suite import Record

_PANELS = {
    "slots": "slots, K",
    "size": "side of the images, pixels",
    "steps": "refinement steps, I",
}


class Curve(NamedTuple):
    """The points of a model and a code along an axis."""

    model: str
    released: bool
    points: list[tuple[int, float]]

    @property
    def title(self) -> str:
        """For a legend."""
        return MODELS[self.model] + (", released" if self.released else "")


def figures(record: Record) -> dict[str, Figure]:
    """The figures of a record, by the names of their files; none of a record without points."""
    drawn = {}
    if any(_curves(record, axis) for axis in _PANELS):
        drawn["cost"] = cost(record)
    if any(_curves(record, "batch", part) for part in PARTS):
        drawn["throughput"] = throughput(record)
    return drawn


def caption(record: Record) -> str:
    """The machine and the circumstances of a record."""
    computed = "float32" if record["device"] == "cpu" else "as emorl train and evaluate compute"
    return caption_of(record, computed, f"networks of {record['base_config']}", "medians")


def _curves(record: Record, axis: str, part: str = PARTS[0]) -> list[Curve]:
    found = [
        Curve(model, released, fits.points_of(record, model, released, axis, part))
        for model in record["bases"]
        for released in (False, True)
    ]
    return [curve for curve in found if curve.points]


def cost(record: Record) -> Figure:
    """Seconds of a training step against K, side and I, with the fitted laws."""
    figure = new_figure(13, 5.8)
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, (axis, label) in zip(panels, _PANELS.items(), strict=True):
        curves = _curves(record, axis)
        axes.set(xlabel=label, yscale="log", xscale="linear" if axis == "steps" else "log")
        for curve in curves:
            _draw(axes, curve, curve.points)
            if fitted := fits.law(axis, curve.points):
                _draw_law(axes, curve, fitted)
        _finish(axes, curves)
        _legend_below(axes, axis, curves)
    panels[0].set_ylabel(f"seconds of a training step of {record['batch']} images")
    figure.suptitle(
        "Cost of a training step; fits by least squares: of logarithms for K and side, "
        "of seconds for I",
        fontsize=11,
    )
    write_caption(figure, caption(record))
    return figure


def throughput(record: Record) -> Figure:
    """Images a second against the batch, of training steps and inferences."""
    figure = new_figure(10, 4.8)
    panels = figure.subplots(1, len(PARTS), sharey=True)
    shown: dict[str, Curve] = {}
    for axes, part in zip(panels, PARTS, strict=True):
        curves = _curves(record, "batch", part)
        axes.set(title=part, xlabel="images at once", xscale="log", yscale="log")
        for curve in curves:
            rates = [(batch, batch / seconds) for batch, seconds in curve.points]
            _draw(axes, curve, rates, joined=True)
        _finish(axes, curves)
        shown |= {curve.title: curve for curve in curves}
    panels[0].set_ylabel("images a second")
    figure.legend(
        handles=[_handle(curve, title) for title, curve in shown.items()],
        loc="outside right center",
        frameon=False,
        fontsize=8.5,
        handlelength=3,
    )
    figure.suptitle("Throughput; higher is better", fontsize=11)
    write_caption(figure, caption(record))
    return figure


def _draw(
    axes: Axes, curve: Curve, points: Sequence[tuple[int, float]], joined: bool = False
) -> None:
    """Markers, filled for ours and open for the released code, joined or not."""
    x, y = zip(*points, strict=True)
    style = STYLES[curve.model]
    axes.plot(
        x,
        y,
        color=style.colour,
        marker=style.marker,
        markerfacecolor="white" if curve.released else style.colour,
        linestyle=_line(curve) if joined else "",
        linewidth=1.2,
        zorder=3,
    )


def _draw_law(axes: Axes, curve: Curve, fitted: fits.Law) -> None:
    x = np.linspace(curve.points[0][0], curve.points[-1][0], 100)
    y = [fitted.at(each) for each in x]
    axes.plot(x, y, color=STYLES[curve.model].colour, linestyle=_line(curve), linewidth=1.2)


def _line(curve: Curve) -> Literal[":", "-"]:
    return ":" if curve.released else "-"


def _finish(axes: Axes, curves: Sequence[Curve]) -> None:
    """Plain numbers, and a tick at each place that was measured."""
    plain_numbers(axes.xaxis, axes.yaxis)
    places = sorted({place for curve in curves for place, _ in curve.points})
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(which="major", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(axes: Axes, axis: str, curves: Sequence[Curve]) -> None:
    """The models of a panel, each with its law."""
    handles = []
    for curve in curves:
        fitted = fits.law(axis, curve.points)
        law = f": {fitted.describe(fits.SYMBOLS[axis])}" if fitted else ""
        handles.append(_handle(curve, curve.title + law, with_line=fitted is not None))
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        frameon=False,
        fontsize=8.5,
        handlelength=3,
    )


def _handle(curve: Curve, label: str, with_line: bool = True) -> Line2D:
    style = STYLES[curve.model]
    return Line2D(
        [],
        [],
        color=style.colour,
        marker=style.marker,
        markerfacecolor="white" if curve.released else style.colour,
        linestyle=_line(curve) if with_line else "",
        linewidth=1.2,
        label=label,
    )
