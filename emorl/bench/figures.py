"""What the figures of all suites have in common."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import emorl.report  # noqa: F401  # prepares matplotlib
from emorl.bench.suite import Record

# The colours of Okabe and Ito, which the colour-blind can tell apart.
COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermilion": "#D55E00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
    "yellow": "#F0E442",
    "black": "#000000",
}


class Style(NamedTuple):
    """How a model is drawn: its colour, and what tells it apart without colour."""

    colour: str
    marker: str


# Of emorl's models, by their names.
STYLES = {
    "efficient_morl": Style(COLOURS["black"], "o"),
    "slot_attention": Style(COLOURS["blue"], "D"),
    "slot_mlp": Style(COLOURS["sky"], "v"),
    "iodine": Style(COLOURS["vermilion"], "s"),
    "monet": Style(COLOURS["green"], "^"),
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def machine_of(record: Record) -> str:
    """The machine that a record is of."""
    machine = record["machine"]
    if record["device"] == "cuda":
        return str(machine["gpu"])
    threads = machine["threads"]
    return f"{machine['processor']}, {threads} thread{'s' if threads > 1 else ''}"


def caption_of(record: Record, *circumstances: str) -> str:
    """Machine, date and PyTorch of a record, its circumstances, and whether it was interrupted."""
    torch = f"torch {record['machine']['torch']}"
    interrupted = ["interrupted"] if record["interrupted"] else []
    return "; ".join([machine_of(record), record["date"], torch, *circumstances, *interrupted])


def write_caption(figure: Figure, caption: str) -> None:
    """Write a line below a figure."""
    figure.supxlabel(caption, fontsize=8, color="#444444")


def plain_numbers(*logarithmic: Axis) -> None:
    """Write numbers such as 0.5 and 200 on logarithmic axes."""
    for axis in logarithmic:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
