"""The paper's figures 10 and 22, from a record of its suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from emorl.bench.figures import COLOURS, caption_of, new_figure, plain_numbers, write_caption
from emorl.bench.paper.cases import MODELS, OURS, RELEASED
from emorl.bench.paper.timing import largest_of
from emorl.bench.passes import BOTH, FORWARD, PARTS
from emorl.bench.suite import Record
from emorl.bench.tables import MIB


class Style(NamedTuple):
    """How a model is drawn: its colour, and what tells it apart without colour."""

    colour: str
    marker: str
    line: str = "-"


STYLES = {
    "iodine": Style(COLOURS["vermilion"], "s"),
    "e-0": Style(COLOURS["orange"], "o"),
    "e-1": Style(COLOURS["purple"], "P"),
    "e-3": Style(COLOURS["black"], "X"),
    "e-0-s": Style(COLOURS["orange"], "<", "--"),
    "e-1-s": Style(COLOURS["purple"], ">", "--"),
    "e-3-s": Style(COLOURS["black"], "*", "--"),
    "slot-attention": Style(COLOURS["blue"], "D"),
    "slot-mlp": Style(COLOURS["sky"], "v"),
    "monet": Style(COLOURS["green"], "^"),
}
# Of bars: (code, part) -> colour, hatch.
_BARS = {
    (OURS, FORWARD): (COLOURS["blue"], ""),
    (OURS, BOTH): (COLOURS["sky"], ""),
    (RELEASED, FORWARD): (COLOURS["orange"], "////"),
    (RELEASED, BOTH): (COLOURS["yellow"], "...."),
}


def figures(record: Record) -> dict[str, Figure]:
    """The figures of a record, by the names of their files; none of a record without timings."""
    if not record["cases"]:
        return {}
    return {
        "time-and-memory": time_and_memory(record),
        "forward-and-backward": forward_and_backward(record),
    }


def caption(record: Record) -> str:
    """The machine and the circumstances of a record."""
    batch = f"batch {record['batch']}, {record['slots']} slots"
    return caption_of(record, record["dtype"], batch, "medians")


def time_and_memory(record: Record) -> Figure:
    """Memory against time, a line for each model and code, joining its image sizes (figure 10).

    Memory is the largest batch, if the record has it of all, else the peak of the part.
    """
    entries = record["cases"]
    by_batch = all(largest_of(entry) for entry in entries)
    figure = new_figure(11, 4.9)
    panels = figure.subplots(1, 2, sharey=by_batch)
    for axes, part in zip(panels, PARTS, strict=True):
        for model in MODELS:
            for code in (OURS, RELEASED):
                _line(axes, _of(entries, model, code), part, by_batch)
        axes.set(title=part, xlabel=f"seconds for {record['batch']} images")
        axes.set(xscale="log", yscale="log")
        plain_numbers(axes.xaxis, axes.yaxis)
        axes.grid(which="major", linewidth=0.4, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    gib = record["memory_limit"] / 2**30
    panels[0].set_ylabel(
        f"largest batch in {gib:g} GiB (forward+backward)" if by_batch else "peak memory, MiB"
    )
    better = "upper" if by_batch else "lower"
    figure.suptitle(f"Memory against time; better is to the {better} left", fontsize=11)
    figure.legend(
        handles=_legend(entries),
        loc="outside right center",
        frameon=False,
        fontsize=8.5,
        handlelength=3.5,
    )
    write_caption(figure, caption(record))
    return figure


def _of(entries: Sequence[Record], model: str, code: str) -> list[Record]:
    """The entries of a model and a code, by size."""
    own = [entry for entry in entries if (entry["model"], entry["code"]) == (model, code)]
    return sorted(own, key=lambda entry: int(entry["size"]))


def _line(axes: Axes, entries: Sequence[Record], part: str, by_batch: bool) -> None:
    if not entries:
        return
    style, is_ours = STYLES[entries[0]["model"]], entries[0]["code"] == OURS
    parts = [entry["parts"][part] for entry in entries]
    x = [each["median"] for each in parts]
    y = [largest_of(entry) for entry in entries] if by_batch else _mebibytes(parts)
    axes.plot(x, y, color=style.colour, linestyle=style.line if is_ours else ":", linewidth=1.2)
    axes.scatter(
        x,
        y,
        s=[_area(entry["size"]) for entry in entries],
        marker=style.marker,
        facecolor=style.colour if is_ours else "white",
        edgecolor=style.colour,
        linewidth=1.2,
        zorder=3,
    )


def _mebibytes(parts: Sequence[Record]) -> list[float]:
    return [max(part["peak_bytes"], MIB) / MIB for part in parts]


def _area(size: int) -> float:
    """Of a marker, in square points."""
    return float(size) * 0.75


def _legend(entries: Sequence[Record]) -> list[Line2D]:
    def handle(label: str, style: Style, **how: Any) -> Line2D:
        return Line2D([], [], color=style.colour, marker=style.marker, label=label, **how)

    models = {entry["model"] for entry in entries}
    handles = [
        handle(MODELS[m].title, STYLES[m], linestyle=STYLES[m].line) for m in MODELS if m in models
    ]
    grey = Style("#555555", "o")
    if any(entry["code"] == RELEASED for entry in entries):
        handles.append(handle("as released: open", grey, linestyle=":", markerfacecolor="white"))
    handles += [
        handle(f"{size}x{size}", grey, linestyle="", markersize=_area(size) ** 0.5)
        for size in sorted({entry["size"] for entry in entries})
    ]
    return handles


def forward_and_backward(record: Record) -> Figure:
    """Bars of the seconds of forward and backward pass, for each image size (figure 22)."""
    entries = record["cases"]
    sizes = sorted({entry["size"] for entry in entries})
    models = [model for model in MODELS if any(entry["model"] == model for entry in entries)]
    codes = [code for code in (OURS, RELEASED) if any(e["code"] == code for e in entries)]
    thick = 0.8 / len(codes)
    height = 1.7 + 0.26 * len(models) * len(codes)
    figure = new_figure(11, height)
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        shown = [entry for entry in entries if entry["size"] == size]
        for entry in shown:
            of_model = [code for code in codes if _of(shown, entry["model"], code)]
            place = (of_model.index(entry["code"]) - (len(of_model) - 1) / 2) * thick
            _bar(axes, entry, models.index(entry["model"]) + place, 0.92 * thick)
        axes.set(title=f"{size}x{size}", xlabel=f"seconds for {record['batch']} images")
        axes.set_yticks(range(len(models)), [MODELS[model].title for model in models])
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)
        axes.margins(x=0.17)
        axes.set_xlim(left=0)
    panels[0].invert_yaxis()
    names = {FORWARD: "forward", BOTH: "backward"}
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="black", label=f"{code}, {names[part]}")
        for (code, part), (colour, hatch) in _BARS.items()
        if code in codes
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8.5)
    write_caption(figure, caption(record))
    return figure


def _bar(axes: Axes, entry: Record, y: float, height: float) -> None:
    """The bar of a case: forward, then what backward adds, and the sum with its quantiles."""
    forward, both = (entry["parts"][part] for part in PARTS)
    ends = [0.0, forward["median"], max(both["median"], forward["median"])]
    for part, begin, end in zip(PARTS, ends, ends[1:], strict=False):
        colour, hatch = _BARS[entry["code"], part]
        axes.barh(
            y,
            end - begin,
            left=begin,
            height=height,
            color=colour,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.5,
        )
    low, high = np.abs([both["p20"] - both["median"], both["p80"] - both["median"]])
    axes.errorbar(both["median"], y, xerr=[[low], [high]], color="black", linewidth=0.8)
    axes.annotate(
        f"{both['median']:.3g}",
        (max(both["p80"], ends[-1]), y),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
    )
