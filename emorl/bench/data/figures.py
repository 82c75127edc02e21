"""The figure of the suite: what sources give, and what training steps eat."""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from emorl.bench.data.sources import SOURCES, WORKERS
from emorl.bench.data.steps import is_laptop
from emorl.bench.data.tables import hungriest, rate_of
from emorl.bench.figures import COLOURS, caption_of, new_figure, write_caption
from emorl.bench.suite import Record

# By workers: colour and hatch.
_BARS = {0: (COLOURS["blue"], ""), 1: (COLOURS["sky"], "...."), 2: (COLOURS["yellow"], "////")}
_THICK = 0.27
_LAPTOP, _OFFICIAL = "laptop", "official"
# By kind of configuration: colour and style of the line.
_LINES: dict[str, tuple[str, Literal["-", "--"]]] = {
    _LAPTOP: (COLOURS["vermilion"], "--"),
    _OFFICIAL: (COLOURS["black"], "-"),
}


def figures(record: Record) -> dict[str, Figure]:
    """The figures of a record, by the names of their files; none of a record without timings."""
    return {"images-per-second": images_per_second(record)} if record["cases"] else {}


def caption(record: Record) -> str:
    """The machine and the circumstances of a record."""
    return caption_of(record, f"batches of {record['batch']}", "medians")


def images_per_second(record: Record) -> Figure:
    """Bars for each source and number of workers; lines for what steps of its images eat."""
    entries = record["cases"]
    figure = new_figure(11, 1.8 + 0.62 * len(entries))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, masks in zip(panels, (False, True), strict=True):
        for row, entry in enumerate(entries):
            _bars(axes, entry, masks, row)
            for step in hungriest(record, entry["source"]):
                colour, style = _LINES[_kind(step)]
                eaten = rate_of(step)
                axes.vlines(eaten, row - 0.47, row + 0.47, colour, style, linewidth=1.8)
        axes.set_title("images, as training reads them" if not masks else "images and masks")
        axes.set(xscale="log", xlabel="images per second")
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        titles = [_title(entry) for entry in entries]
        axes.set_yticks(range(len(entries)), titles, fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)
    panels[0].set_ylim(len(entries) - 0.4, -0.6)
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(low / 1.5, high * 2.5)  # room for the numbers
    figure.legend(
        handles=_legend(record), loc="outside upper center", ncols=5, frameon=False, fontsize=8.5
    )
    write_caption(figure, caption(record))
    return figure


def _bars(axes: Axes, entry: Record, masks: bool, row: int) -> None:
    parts = [part for part in entry["parts"].values() if part["masks"] == masks]
    for part in parts:
        colour, hatch = _BARS[part["workers"]]
        place = row + (WORKERS.index(part["workers"]) - 1) * _THICK
        rate, spread = rate_of(part), part["images_per_second"]
        axes.barh(
            place,
            rate,
            height=0.9 * _THICK,
            color=colour,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.5,
        )
        ends = [[rate - spread["p20"]], [spread["p80"] - rate]]
        axes.errorbar(rate, place, xerr=ends, color="black", linewidth=0.8)
        axes.annotate(
            f"{float(f'{rate:.3g}'):,g}",
            (spread["p80"], place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # lines pass behind
            zorder=4,
        )


def _kind(step: Record) -> str:
    return _LAPTOP if is_laptop(step["config"]) else _OFFICIAL


def _title(entry: Record) -> str:
    height, width = entry["image_size"]
    return f"{SOURCES[entry['source']].title}\n{height}x{width}"


def _legend(record: Record) -> list[Patch | Line2D]:
    shown = {part["workers"] for entry in record["cases"] for part in entry["parts"].values()}
    handles: list[Patch | Line2D] = [
        Patch(
            facecolor=colour,
            hatch=hatch,
            edgecolor="black",
            label=f"{workers} worker{'' if workers == 1 else 's'}",
        )
        for workers, (colour, hatch) in _BARS.items()
        if workers in shown
    ]
    kinds = {_kind(step) for step in record["steps"]}
    handles += [
        Line2D(
            [], [], color=colour, linestyle=style, label=f"what a step eats, {kind} configuration"
        )
        for kind, (colour, style) in _LINES.items()
        if kind in kinds
    ]
    return handles
