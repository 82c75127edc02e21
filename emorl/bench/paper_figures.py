"""The paper's figures 10 and 22, from a record of its suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import emorl.report  # noqa: F401  # prepares matplotlib
from emorl.bench.paper import BOTH, FORWARD, MODELS, OURS, PARTS, RELEASED
from emorl.bench.paper_timing import Record, largest_of


class Style(NamedTuple):
    """How a model is drawn: colours of Okabe and Ito, and what tells them apart without colour."""

    colour: str
    marker: str
    line: str = "-"


STYLES = {
    "iodine": Style("#D55E00", "s"),
    "e-0": Style("#E69F00", "o"),
    "e-1": Style("#CC79A7", "P"),
    "e-3": Style("#000000", "X"),
    "e-0-s": Style("#E69F00", "<", "--"),
    "e-1-s": Style("#CC79A7", ">", "--"),
    "e-3-s": Style("#000000", "*", "--"),
    "slot-attention": Style("#0072B2", "D"),
    "slot-mlp": Style("#56B4E9", "v"),
    "monet": Style("#009E73", "^"),
}
# Of bars: (code, part) -> colour, hatch.
_BARS = {
    (OURS, FORWARD): ("#0072B2", ""),
    (OURS, BOTH): ("#56B4E9", ""),
    (RELEASED, FORWARD): ("#E69F00", "////"),
    (RELEASED, BOTH): ("#F0E442", "...."),
}
_MIB = 2**20


def figures(record: Record) -> dict[str, Figure]:
    """The figures of a record, by the names of their files; none of a record without timings."""
    if not record["cases"]:
        return {}
    return {
        "time-and-memory": time_and_memory(record),
        "forward-and-backward": forward_and_backward(record),
    }


def machine_of(record: Record) -> str:
    """The machine that a record is of."""
    machine = record["machine"]
    if record["device"] == "cuda":
        return str(machine["gpu"])
    threads = machine["threads"]
    return f"{machine['processor']}, {threads} thread{'s' if threads > 1 else ''}"


def caption(record: Record) -> str:
    """The machine and the circumstances of a record."""
    return (
        f"{machine_of(record)}; {record['date']}; torch {record['machine']['torch']}, "
        f"{record['dtype']}; batch {record['batch']}, {record['slots']} slots; medians"
        + ("; interrupted" if record["interrupted"] else "")
    )


def time_and_memory(record: Record) -> Figure:
    """Memory against time, a line for each model and code, joining its image sizes (figure 10).

    Memory is the largest batch, if the record has it of all, else the peak of the part.
    """
    entries = record["cases"]
    by_batch = all(largest_of(entry) for entry in entries)
    figure = Figure(figsize=(11, 4.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=by_batch)
    for axes, part in zip(panels, PARTS, strict=True):
        for model in MODELS:
            for code in (OURS, RELEASED):
                _line(axes, _of(entries, model, code), part, by_batch)
        axes.set(title=part, xlabel=f"seconds for {record['batch']} images")
        axes.set(xscale="log", yscale="log")
        _plain_numbers(axes)
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
    _write_caption(figure, record)
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
    return [max(part["peak_bytes"], _MIB) / _MIB for part in parts]


def _area(size: int) -> float:
    """Of a marker, in square points."""
    return float(size) * 0.75


def _plain_numbers(axes: Axes) -> None:
    """Numbers such as 0.5 and 200 on logarithmic axes."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


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
    figure = Figure(figsize=(11, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
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
    _write_caption(figure, record)
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


def _write_caption(figure: Figure, record: Record) -> None:
    figure.supxlabel(caption(record), fontsize=8, color="#444444")
