"""The curves of a training run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

Row = Mapping[str, Any]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values

# Title, and the names of the values that belong there. Numbered ones stand in for the plain one.
PANELS = (
    ("Loss", r"loss"),
    ("Negative log-likelihood, nats", r"nll(?:_(\d+))?"),
    ("KL divergence, nats", r"kl(?:_(?:layer|refinement)_(\d+))?"),
    ("FG-ARI on held-out images", r"fg_ari"),
    ("Length of the refinement's updates", r"update_norm_(\d+)"),
    ("Norm of the gradient, unclipped", r"gradient_norm"),
    ("GECO's multiplier, before softplus", r"geco_raw_multiplier"),
    ("Learning rate", r"learning_rate"),
    ("Training speed, images/s", r"images_per_second"),
)
COLUMNS = 3
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#332288")
SETTLING = 0.02  # share of the steps that the y axis is not fitted to
SMOOTHED_FROM = 100  # values


def curves_figure(rows: Sequence[Row]) -> Figure:
    """Everything that a run logged, against the step.

    A y axis is fitted to the values after the first 2 % of the steps, since those at the very
    start would hide the rest. With 100 values or more a pale line is what was logged, and a
    strong one its running mean over a fiftieth of them.

    Args:
        rows: of `metrics.jsonl`: "step", and any of "loss", "nll", "nll_0", "kl_layer_1",
            "kl_refinement_1", "learning_rate", "images_per_second", "fg_ari" ... Values that are
            missing, None or not finite leave a gap.

    Raises:
        ValueError: if the rows have none of these.
    """
    panels = [(title, found) for title, names in PANELS if (found := _curves(rows, names))]
    if not panels:
        raise ValueError(f"curves_figure: expected rows with losses, got {len(rows)} rows without")
    height = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 2.4 * height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    last = max(row["step"] for row in rows)
    for place, (title, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(height, COLUMNS, place)
        _draw(axes, title, curves, last)
    return figure


def _curves(rows: Sequence[Row], pattern: str) -> dict[str, Curve]:
    """The curves whose names match, in order of their numbers: legend -> curve."""
    names = {name for row in rows for name in row if re.fullmatch(pattern, name)}
    numbered = {name for name in names if name[-1].isdigit()}
    order = sorted(numbered or names, key=_order)
    curves = {_legend(name): _curve(rows, name) for name in order}
    return {legend: curve for legend, curve in curves.items() if len(curve[0])}


def _order(name: str) -> tuple[str, int]:
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if number.isdigit() else (name, 0)


def _legend(name: str) -> str:
    stem, number = _order(name)
    if "layer" in stem:
        return f"layer {number}"
    return "before refinement" if name == "nll_0" else f"refinement {number}"


def _curve(rows: Sequence[Row], name: str) -> Curve:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    array = array[np.isfinite(array).all(1)]
    return array[:, 0], array[:, 1]


def _draw(axes: Axes, title: str, curves: dict[str, Curve], last: float) -> None:
    for number, (legend, (steps, values)) in enumerate(curves.items()):
        colour = LINES[number % len(LINES)]
        marker = "o" if len(steps) <= 30 else ""
        smooth = len(steps) >= SMOOTHED_FROM
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 2.5}
        if smooth:
            axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
            values = _running_mean(values, len(values) // 50)
        axes.plot(steps, values, linewidth=1.3, label=legend, **style)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7.5, length=2)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    _fit(axes, list(curves.values()), last)
    if len(curves) > 1:
        axes.legend(fontsize=7, frameon=False)


def _fit(axes: Axes, curves: list[Curve], last: float) -> None:
    """The y axis for the values after the start."""
    settled = np.concatenate([values[steps >= SETTLING * last] for steps, values in curves])
    if len(settled):
        low, high = settled.min(), settled.max()
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean over `width` values on either side, fewer at the ends."""
    total = np.concatenate([[0.0], values.cumsum()])
    place = np.arange(len(values))
    first, end = np.maximum(place - width, 0), np.minimum(place + width + 1, len(values))
    mean: NDArray[np.float64] = (total[end] - total[first]) / (end - first)
    return mean
