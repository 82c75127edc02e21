"""The figure of the suite: FG-ARI and squared error against minutes of training."""

from __future__ import annotations

from matplotlib.figure import Figure

from emorl.bench.figures import STYLES, caption_of, new_figure, plain_numbers, write_caption
from emorl.bench.quality.run import TITLES
from emorl.bench.suite import Record

_PANELS = {"fg_ari": "FG-ARI; higher is better", "mse": "mean squared error; lower is better"}


def figures(record: Record) -> dict[str, Figure]:
    """The figures of a record, by the names of their files; none of a record without curves."""
    return {"against-minutes": against_minutes(record)} if record["cases"] else {}


def caption(record: Record) -> str:
    """The machine and the circumstances of a record."""
    seeds = sorted({str(entry["seed"]) for entry in record["cases"]})
    seeds_in_words = f"seed{'' if len(seeds) == 1 else 's'} {', '.join(seeds)}"
    return caption_of(record, f"{record['config']}, {seeds_in_words}")


def against_minutes(record: Record) -> Figure:
    """A panel for each metric on held-out generated images, a line for each model."""
    figure = new_figure(11, 4.6)
    for axes, (metric, label) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
        for entry in record["cases"]:
            style = STYLES[entry["model"]]
            axes.plot(
                [point["minutes"] for point in entry["points"]],
                [point["generated"][metric] for point in entry["points"]],
                color=style.colour,
                marker=style.marker,
                markersize=5,
                linewidth=1.3,
                label=TITLES[entry["model"]].partition(" (")[0],
            )
        axes.set(xlabel="minutes of training", ylabel=label)
        axes.set_xlim(left=0)
        axes.grid(linewidth=0.4, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    left, right = figure.axes
    left.set_ylim(min(0.0, left.get_ylim()[0]), 1.0)
    right.set_yscale("log")
    plain_numbers(right.yaxis)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8.5
    )
    write_caption(figure, caption(record))
    return figure
