"""Results of evaluations as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from emorl.runs.trained import short_name

_SWEPT = ("fg_ari", "fg_miou", "mse")


def table(result: dict[str, Any]) -> str:
    """The result of an evaluation as text for a terminal."""
    steps = result["refinement_steps"]
    refined = "" if steps is None else f", {steps} refinement step{'s' * (steps != 1)}"
    head = (
        f"{_subject(result)}{refined}, seed {result['seed']}\n"
        f"protocol {result['protocol']}: {result['protocol_meaning']}\n\n"
        f"{'metric':36} {'mean':>12} {'std':>12} {'95 % interval of the mean':>26} {'images':>7}"
    )
    rows = [_row(name, summary) for name, summary in result["metrics"].items()]
    notes = [f"note: {note}" for note in result["notes"]]
    return "\n".join([head, *rows, *notes])


def _subject(result: dict[str, Any]) -> str:
    """What was measured, and on which images."""
    data = f"{result['data']} ({result['split']}): {result['images']} images"
    return f"{short_name(result['checkpoint'])}\n{data}"


def _row(name: str, summary: dict[str, Any]) -> str:
    row = f"{name:36} {summary['mean']:12.5g}"
    if math.isnan(summary["std"]):
        return f"{row} {'':39} {summary['count']:7d}"
    interval = f"{summary['low']:.5g} to {summary['high']:.5g}"
    return f"{row} {summary['std']:12.5g} {interval:>26} {summary['count']:7d}"


def sweep_table(result: dict[str, Any]) -> str:
    """A sweep as text: of each number the means, standard deviations and intervals."""
    points = result["points"]
    names = [name for name in _SWEPT if all(name in point["metrics"] for point in points)]
    swept = result["sweep"].removeprefix("num_").replace("_", " ")
    head = (
        f"{_subject(result)}, seed {result['seed']}\n"
        f"protocol {result['protocol']}: {result['protocol_meaning']}\n\n"
        "mean +- standard deviation of images (95 % interval of the mean)\n"
    )
    rows = [[swept, *names]]
    for point in points:
        own = "*" if point["value"] == result["own"] else ""
        summaries = [point["metrics"][name] for name in names]
        rows.append([f"{point['value']}{own}", *map(_spread, summaries)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(x.rjust(w) for x, w in zip(row, widths, strict=True)) for row in rows]
    star = ["*: the model's own number"] * any(p["value"] == result["own"] for p in points)
    return head + "\n".join([*lines, *(f"note: {note}" for note in (*star, *result["notes"]))])


def _spread(summary: dict[str, Any]) -> str:
    interval = f"({summary['low']:.4g} to {summary['high']:.4g})"
    return f"{summary['mean']:.4g} +- {summary['std']:.3g} {interval}"


def as_json(result: dict[str, Any]) -> bytes:
    """A result as JSON, which knows no NaN: null stands for what is not defined."""
    return (json.dumps(_without_nan(result), indent=2) + "\n").encode()


def as_csv(per_image: dict[str, list[float]]) -> bytes:
    """The numbers of each image, one row for each seed and image; empty where not defined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(per_image)
    for row in zip(*per_image.values(), strict=True):
        writer.writerow(["" if math.isnan(value) else value for value in row])
    return text.getvalue().encode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
