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

# Title, the names of the values that belong there (numbered ones stand in for the plain one), and
# whether these are noisy: then the line is smoothed, and the axis not fitted to the start.
PANELS = (
    ("Loss", r"loss", True),
    ("NLL in nats, or squared error", r"nll(?:_(\d+))?", True),
    ("KL divergence, nats", r"kl(?:_(?:layer|refinement)_(\d+))?", True),
    ("KL divergence of masks, nats", r"mask_kl", True),
    ("FG-ARI on held-out images", r"fg_ari", False),
    ("Length of the refinement's updates", r"update_norm_(\d+)", True),
    ("Norm of the gradient, unclipped", r"gradient_norm", True),
    ("GECO's multiplier, before softplus", r"geco_raw_multiplier", False),
    ("Learning rate", r"learning_rate", False),
    ("Training speed, images/s", r"images_per_second", True),
)
COLUMNS = 3
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#332288")
SETTLING = 0.02  # share of the steps that the y axis is not fitted to
SMOOTHED_FROM = 100  # values


def curves_figure(rows: Sequence[Row]) -> Figure:
    """Everything that a run logged, against the step.

    Losses, gradients and speeds are noisy: their y axes are fitted to what comes after the first
    2 % of the steps, since the very start would hide the rest, and with 100 values or more a pale
    line is what was logged, a strong one its running mean over a twenty-fifth of them.

    Args:
        rows: of `metrics.jsonl`: "step", and any of "loss", "nll", "nll_0", "kl_layer_1",
            "kl_refinement_1", "learning_rate", "images_per_second", "fg_ari" ... Values that are
            missing, None or not finite leave a gap.

    Raises:
        ValueError: if the rows have none of these.
    """
    panels = [
        (title, noisy, found) for title, names, noisy in PANELS if (found := _curves(rows, names))
    ]
    if not panels:
        raise ValueError(f"curves_figure: expected rows with losses, got {len(rows)} rows without")
    height = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 2.4 * height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    last = max(row["step"] for row in rows)
    for place, (title, noisy, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(height, COLUMNS, place)
        axes.set_title(title, fontsize=9, loc="left")
        _draw(axes, curves, noisy)
        if noisy:
            _fit(axes, list(curves.values()), SETTLING * last)
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
    place = np.arange(len(values))
    first, end = np.maximum(place - width, 0), np.minimum(place + width + 1, len(values))
    mean: NDArray[np.float64] = (total[end] - total[first]) / (end - first)
    return mean
