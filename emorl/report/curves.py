"""The curves of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from emorl.models.terms import Term, term
from emorl.report.backend import own_settings

Row = Mapping[str, Any]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values

# Title, the family of the values that belong there (numbered ones stand in for the plain one), and
# whether these are noisy: then the line is smoothed, and the axis not fitted to the start.
PANELS = (
    ("Loss", "loss", True),
    ("NLL in nats, or squared error", "nll", True),
    ("KL divergence, nats", "kl", True),
    ("KL divergence of masks, nats", "mask_kl", True),
    ("FG-ARI on held-out images", "fg_ari", False),
    ("Length of the refinement's updates", "update_norm", True),
    ("Norm of the gradient, unclipped", "gradient_norm", True),
    ("GECO's multiplier, before softplus", "geco_raw_multiplier", False),
    ("Learning rate", "learning_rate", False),
    ("Training speed, images/s", "images_per_second", True),
)
COLUMNS = 3
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#332288")
SETTLING = 0.02  # share of the steps that the y axis is not fitted to
SMOOTHED_FROM = 100  # values


@own_settings()
def curves_figure(rows: Sequence[Row]) -> Figure:
    """Plot everything that a run logged, against the step.

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
        (title, noisy, found) for title, family, noisy in PANELS if (found := _curves(rows, family))
    ]
    if not panels:
        raise ValueError(f"curves_figure: expected rows with losses, got {len(rows)} rows without")
    height = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 2.4 * height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    last = max(row["step"] for row in rows)
    for number, (title, noisy, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(height, COLUMNS, number)
        axes.set_title(title, fontsize=9, loc="left")
        _draw(axes, curves, noisy)
        if noisy:
            _fit(axes, list(curves.values()), SETTLING * last)
    return figure


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
    index = np.arange(len(values))
    first, end = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    mean: NDArray[np.float64] = (total[end] - total[first]) / (end - first)
    return mean
