"""The figure of a sweep over numbers of refinement steps, or of slots."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emorl.report.backend import own_settings
from emorl.report.curves import LINES
from emorl.report.meanings import meaning

# Metrics that are drawn where they are known, and the least and largest number that each can be.
PANELS = {"fg_ari": (-0.5, 1.0), "fg_miou": (0.0, 1.0), "mse": (0.0, math.inf)}
WORDS = {"refinement_steps": "refinement steps", "num_slots": "slots"}


@own_settings()
def sweep_figure(result: dict[str, Any]) -> Figure:
    """Plot the mean of each metric against the number that was swept.

    Bars are the mean's interval by the bootstrap, the pale band is the spread of images, one
    standard deviation to each side as far as the metric goes. A dashed line is at the model's own
    number.

    Args:
        result: of `emorl.evaluation.sweep`, or its JSON, with "data" and "split".
    """
    points = result["points"]
    names = [name for name in PANELS if all(name in point["metrics"] for point in points)]
    figure = Figure(figsize=(3.4 * len(names), 3.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), number)
        axes.set_title(meaning(name)[0], fontsize=9, loc="left")
        axes.set_xlabel(WORDS[result["sweep"]], fontsize=8)
        _draw(axes, result, name)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    title = (
        f"{Path(result['data']).name} ({result['split']}): {result['images']} images, "
        f"protocol {result['protocol']}"
    )
    figure.suptitle(title, fontsize=9, color="#444444", parse_math=False)
    return figure


def _draw(axes: Axes, result: dict[str, Any], name: str) -> None:
    values = [point["value"] for point in result["points"]]
    summaries = [point["metrics"][name] for point in result["points"]]
    mean, std, low, high = (
        np.array([summary[key] for summary in summaries], dtype=np.float64)
        for key in ("mean", "std", "low", "high")
    )
    band = np.clip([mean - std, mean + std], *PANELS[name])
    axes.fill_between(
        values, *band, color=LINES[0], alpha=0.15, linewidth=0, label="standard deviation of images"
    )
    axes.errorbar(
        values,
        mean,
        yerr=[mean - low, high - mean],
        color=LINES[0],
        marker="o",
        markersize=4,
        linewidth=1.3,
        capsize=3,
        label="mean, 95 % interval (bootstrap)",
    )
    if values[0] <= result["own"] <= values[-1]:
        axes.axvline(
            result["own"], color="#666666", linestyle="--", linewidth=0.9, label="the model's own"
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=7.5, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
