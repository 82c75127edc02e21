"""The curves of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from emorl.models.terms import TERMS, Term, term
from emorl.report.backend import own_settings

Row = Mapping[str, Any]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values


class Panel(NamedTuple):
    """A plot of one family of values.

    Attributes:
        title: of the plot.
        family: of the values that belong there; numbered ones stand in for the plain one.
        noisy: then the line is smoothed, and the y axis not fitted to the start.
        meaning: what the values tell.
    """

    title: str
    family: str
    noisy: bool
    meaning: str


PANELS = (
    Panel("Loss", "loss", True, "What training lowers: the weighted sum of the terms."),
    Panel(
        "NLL in nats, or squared error",
        "nll",
        True,
        "How badly the reconstruction explains the image. Lower is better.",
    ),
    Panel(
        "KL divergence, nats",
        "kl",
        True,
        "How much the slots tell beyond what their prior expects.",
    ),
    Panel("KL divergence of masks, nats", "mask_kl", True, TERMS["mask_kl"].meaning),
    Panel(
        "FG-ARI on held-out images",
        "fg_ari",
        False,
        "Do pixels of one object share a slot, and pixels of two objects not? 1 is perfect.",
    ),
    Panel(
        "Length of the refinement's updates",
        "update_norm",
        True,
        "How far a refinement step moves the slots' posteriors.",
    ),
    Panel(
        "Norm of the gradient, unclipped",
        "gradient_norm",
        True,
        "Length of the gradient of all weights; a jump is an unusual batch.",
    ),
    Panel(
        "GECO's multiplier, before softplus",
        "geco_raw_multiplier",
        False,
        "Weight of the reconstruction in the loss; it falls once the goal is met.",
    ),
    Panel("Learning rate", "learning_rate", False, "Size of the optimiser's steps."),
    Panel(
        "Training speed, images/s",
        "images_per_second",
        True,
        "Of the steps alone. Higher is better.",
    ),
)
COLUMNS = 3
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#332288")
SETTLING = 0.02  # share of the steps that the y axis is not fitted to
SMOOTHED_FROM = 100  # values
POINTS = 1000  # of a curve in a page
_LARGEST = float(np.finfo(np.float32).max)  # that is drawn; losses are float32


@own_settings()
def curves_figure(rows: Sequence[Row]) -> Figure:
    """Plot everything that a run logged, against the step.

    Losses, gradients and speeds are noisy: their y axes are fitted to what comes after the first
    2 % of the steps, since the very start would hide the rest, and with 100 values or more a pale
    line is what was logged, a strong one its running mean over a twenty-fifth of them.

    Args:
        rows: of `metrics.jsonl`: "step", and any of "loss", "nll", "nll_0", "kl_layer_1",
            "kl_refinement_1", "learning_rate", "images_per_second", "fg_ari" ... Values that are
            missing, None, not finite or beyond float32 leave a gap.

    Raises:
        ValueError: if the rows have none of these.
    """
    panels = [(panel, found) for panel in PANELS if (found := _curves(rows, panel.family))]
    if not panels:
        raise ValueError(f"curves_figure: expected rows with losses, got {len(rows)} rows without")
    height = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 2.4 * height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    last = max(row["step"] for row in rows)
    for number, (panel, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(height, COLUMNS, number)
        axes.set_title(panel.title, fontsize=9, loc="left")
        _draw(axes, curves, panel.noisy)
        if panel.noisy:
            _fit(axes, list(curves.values()), SETTLING * last)
    return figure


def curve_data(runs: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """The panels of one or several runs for a page that draws them, as what JSON can hold.

    A curve has its run's number, its legend, its colour of `LINES`, steps, values and, where it is
    noisy and long, their running mean; of more than `POINTS` values every second is kept, or every
    third ... Numbers have five digits.

    Args:
        runs: the rows of each, as `curves_figure` takes them.

    Returns:
        Those of `PANELS` for which a run has values; a panel's "settled" is the step from which on
        its values count for the y axis.
    """
    last = max((row["step"] for rows in runs for row in rows), default=0)
    panels = []
    for panel in PANELS:
        found = [_curves(rows, panel.family) for rows in runs]
        legends = [*dict.fromkeys(legend for curves in found for legend in curves)]
        curves = [
            {
                "run": run,
                "legend": legend,
                "colour": legends.index(legend) % len(LINES),
                **_points(curve, panel.noisy),
            }
            for run, of_run in enumerate(found)
            for legend, curve in of_run.items()
        ]
        settled = SETTLING * last if panel.noisy else 0
        if curves:
            panels.append({**panel._asdict(), "settled": settled, "curves": curves})
    return panels


def _points(curve: Curve, noisy: bool) -> dict[str, list[float] | None]:
    steps, values = curve
    kept = slice(None, None, -(-len(steps) // POINTS))
    smooth = None
    if noisy and len(steps) >= SMOOTHED_FROM:
        smooth = _short(_running_mean(values, len(values) // 50)[kept])
    return {"steps": steps[kept].tolist(), "values": _short(values[kept]), "smooth": smooth}


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _curves(rows: Sequence[Row], family: str) -> dict[str, Curve]:
    """The curves of a family, in order of their numbers: legend -> curve."""
    names = {name for row in rows for name in row if _described(name).family == family}
    numbered = {name for name in names if name[-1].isdecimal()}
    order = sorted(numbered or names, key=_order)
    curves = {_described(name).legend: _curve(rows, name) for name in order}
    return {legend: curve for legend, curve in curves.items() if len(curve[0])}


def _described(name: str) -> Term:
    """The entry of a value; one that no model reports is its own family."""
    return term(name) or Term(name, "", "", family=name)


def _order(name: str) -> tuple[str, int]:
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if number.isdecimal() else (name, 0)


def _curve(rows: Sequence[Row], name: str) -> Curve:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    array = array[(np.abs(array) <= _LARGEST).all(1)]
    return array[:, 0], array[:, 1]


def _draw(axes: Axes, curves: dict[str, Curve], noisy: bool) -> None:
    for number, (legend, (steps, values)) in enumerate(curves.items()):
        colour = LINES[number % len(LINES)]
        if noisy and len(steps) >= SMOOTHED_FROM:
            axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
            values = _running_mean(values, len(values) // 50)
        marker = "o" if len(steps) <= 30 else ""
        axes.plot(
            steps, values, color=colour, linewidth=1.3, marker=marker, markersize=2.5, label=legend
        )
    axes.tick_params(labelsize=7.5, length=2)
    axes.ticklabel_format(axis="y", scilimits=(-3, 5))
    axes.yaxis.offsetText.set_fontsize(7.5)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    if len(curves) > 1:
        columns = 2 if len(curves) > 4 else 1
        axes.legend(fontsize=7, ncols=columns, framealpha=0.8, edgecolor="none")


def _fit(axes: Axes, curves: list[Curve], start: float) -> None:
    """The y axis for the values from the step `start` on."""
    settled = np.concatenate([values[steps >= start] for steps, values in curves])
    if len(settled):
        low, high = settled.min(), settled.max()
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean over `width` values on either side, fewer at the ends."""
    total = np.concatenate([[0.0], values.cumsum()])
    index = np.arange(len(values))
    first, end = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    mean: NDArray[np.float64] = (total[end] - total[first]) / (end - first)
    return mean
