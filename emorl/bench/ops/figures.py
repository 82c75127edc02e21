"""Figures of the operators' suite: how many times as fast each form is, and a roofline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from emorl.bench.figures import COLOURS, caption_of, new_figure, plain_numbers, write_caption
from emorl.bench.ops import block
from emorl.bench.ops.operators import OPERATORS
from emorl.bench.ops.plan import MODELS
from emorl.bench.ops.tables import VARIANTS, Result, of_works
from emorl.bench.passes import BOTH, PARTS
from emorl.bench.suite import Record


class Style(NamedTuple):
    """How a form is drawn: its colour, and what tells it apart without colour."""

    colour: str
    marker: str
    hatch: str
    title: str


STYLES = {
    "native": Style(COLOURS["blue"], "o", "", "native"),
    "triton": Style(COLOURS["black"], "P", "xx", "Triton"),
    "plain": Style(COLOURS["vermilion"], "s", "||||", "plain PyTorch"),
    "sdpa": Style(COLOURS["purple"], "D", "....", "scaled_dot_product_attention"),
    "compiled": Style(COLOURS["orange"], "^", "////", "torch.compile"),
    "lucidrains": Style(COLOURS["green"], "s", "||||", "lucidrains"),
    "lucidrains compiled": Style(COLOURS["yellow"], "v", "\\\\\\\\", "lucidrains, torch.compile"),
}

_LINES = ("-", "--", ":")  # of the roofs, by dtype


def figures(record: Record) -> dict[str, Figure]:
    """The figures of a record, by the names of their files; none of a record without timings."""
    results = of_works(record)
    drawn = {}
    dtypes = dict.fromkeys(result.entry["dtype"] for result in results)
    for name, dtype in product(MODELS, dtypes):
        own = [r for r in results if (r.entry["operator"], r.entry["dtype"]) == (name, dtype)]
        compared = [result for result in own if len(result.parts) > 1]
        if compared:
            drawn[f"speed-{name}-{dtype}"] = speed(record, compared)
    if any("costs" in result.entry for result in results):
        drawn["roofline"] = roofline(record, results)
    return drawn


def caption(record: Record) -> str:
    """The machine and the circumstances of a record."""
    return caption_of(record, "medians")


def speed(record: Record, results: Sequence[Result]) -> Figure:
    """Bars: how many times as fast as plain PyTorch, or lucidrains' module, each form is.

    Args:
        record: that they are of.
        results: of one operator and dtype.
    """
    of = next(name for name in ("plain", "lucidrains", results[0].first) if _has(results, name))
    compared = [result for result in results if of in result.time]
    parts = [part for part in PARTS if any(result.part == part for result in compared)]
    works = [*dict.fromkeys(result.entry["work"] for result in compared)]
    variants = [name for name in VARIANTS if name != of and _has(compared, name)]
    operator = compared[0].entry["operator"]
    rows = len(works) * (1 + len(variants))
    figure = new_figure(4.2 + 3.4 * len(parts), 1.6 + 0.15 * rows)
    panels = figure.subplots(1, len(parts), sharex=True, sharey=True, squeeze=False)[0]
    for axes, part in zip(panels, parts, strict=True):
        for result in [result for result in compared if result.part == part]:
            _bars(axes, result, of, works.index(result.entry["work"]), variants)
        axes.axvline(1, color=COLOURS["black"], linewidth=0.8)
        axes.set(title=part, xlabel=f"times as fast as {STYLES[of].title}", xscale="log")
        axes.set_yticks(range(len(works)), [work.split()[1] for work in works])
        plain_numbers(axes.xaxis)
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)
        axes.margins(x=0.15, y=0.5 / rows)
    panels[0].invert_yaxis()
    handles = [_patch(name, operator) for name in variants]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        title=f"{operator}, {results[0].entry['dtype']}",
        ncols=4,
        frameon=False,
        fontsize=8.5,
    )
    write_caption(figure, caption(record))
    return figure


def _has(results: Sequence[Result], variant: str) -> bool:
    return any(variant in result.parts for result in results)


def _title(variant: str, operator: str) -> str:
    """The module is ours in both its variants."""
    of_block = {"native": "ours", "compiled": "ours, torch.compile"}
    return (of_block if operator == block.NAME else {}).get(variant, STYLES[variant].title)


def _patch(variant: str, operator: str) -> Patch:
    style = STYLES[variant]
    label = _title(variant, operator)
    return Patch(facecolor=style.colour, hatch=style.hatch, edgecolor="black", label=label)


def _bars(axes: Axes, result: Result, of: str, row: int, variants: Sequence[str]) -> None:
    """The bars of a work and part, from 1 on, one below the other.

    `of` may have been timed in another group: both are known as ratios to the same first variant.
    """
    thick = 0.85 / len(variants)
    for i, name in [(i, name) for i, name in enumerate(variants) if name in result.time]:
        times = result.time[of] / result.time[name]
        style, y = STYLES[name], row + (i - (len(variants) - 1) / 2) * thick
        axes.barh(
            y,
            times - 1,
            left=1,
            height=0.92 * thick,
            color=style.colour,
            hatch=style.hatch,
            edgecolor="black",
            linewidth=0.5,
        )
        side = 1 if times >= 1 else -1
        axes.annotate(
            f"{times:.2g}",
            (times, y),
            xytext=(3 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=6.5,
        )


def roofline(record: Record, results: Sequence[Result]) -> Figure:
    """Operations a second against operations a byte, a panel for each operator.

    Bytes are the fewest that can move, operations those of the definition: what does with fewer
    operations, such as Winograd's convolutions, may lie above the roof.
    """
    shown = [result for result in results if "costs" in result.entry]
    operators = [n for n in OPERATORS if any(r.entry["operator"] == n for r in shown)]
    columns = min(3, len(operators) + 1)
    lines = -(-(len(operators) + 1) // columns)
    figure = new_figure(3.6 * columns, 0.4 + 3.1 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in panels[len(operators) :]:
        axes.axis("off")
    for axes, operator in zip(panels, operators, strict=False):
        own = [result for result in shown if result.entry["operator"] == operator]
        for result in own:
            _points(axes, result)
        _roofs(axes, record)
        axes.set(title=operator, xlabel="operations a byte", ylabel="10$^9$ operations a second")
        axes.grid(which="major", linewidth=0.4, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    handles = _legend(shown, record["roof"]["operations_per_second"])
    panels[len(operators)].legend(handles=handles, loc="center", frameon=False, fontsize=8.5)
    write_caption(figure, caption(record))
    return figure


def _points(axes: Axes, result: Result) -> None:
    cost = result.entry["costs"][result.part]
    for name, part in result.parts.items():
        style = STYLES[name]
        axes.scatter(
            cost["operations"] / cost["bytes"],
            cost["operations"] / part["median"] / 1e9,
            marker=style.marker,
            s=22,
            facecolor=style.colour if result.part == BOTH else "white",
            edgecolor=style.colour,
            linewidth=0.9,
            zorder=3,
        )


def _roofs(axes: Axes, record: Record) -> None:
    """The most that memory and arithmetic allow, over the points' range."""
    axes.set(xscale="log", yscale="log")
    low, high = axes.get_xlim()
    low, high = low / 4, high * 4
    x = np.geomspace(low, high, 200)
    bandwidth = record["roof"]["bytes_per_second"]
    most = record["roof"]["operations_per_second"].values()
    for operations, line in zip(most, _LINES, strict=False):
        y = np.minimum(bandwidth * x, operations) / 1e9
        axes.plot(x, y, color="#555555", linewidth=1, linestyle=line)
    axes.set_xlim(low, high)
    plain_numbers(axes.xaxis, axes.yaxis)


def _legend(results: Sequence[Result], dtypes: Iterable[str]) -> list[Line2D]:
    def handle(label: str, colour: str, **how: Any) -> Line2D:
        return Line2D([], [], color=colour, label=label, **how)

    seen = [name for name in VARIANTS if _has(results, name)]
    handles = [
        handle(STYLES[n].title, STYLES[n].colour, marker=STYLES[n].marker, linestyle="")
        for n in seen
    ]
    grey = {"colour": "#555555", "marker": "o", "linestyle": ""}
    handles += [handle("filled: forward+backward", **grey)]
    handles += [handle("open: forward", **grey, markerfacecolor="white")]
    for dtype, line in zip(dtypes, _LINES, strict=False):
        handles.append(
            handle(f"roof, {dtype}: a large copy,\na matrix product", "#555555", ls=line)
        )
    return handles
