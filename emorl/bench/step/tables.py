"""Tables of the suite: every case, and the laws of their growth."""

from __future__ import annotations

from emorl.bench.step import fits
from emorl.bench.step.cases import MODELS
from emorl.bench.suite import Record
from emorl.bench.tables import MIB, Rows, seconds
from emorl.models import MODELS as NETWORKS

_NONE = "-"


def results(record: Record) -> Rows:
    """A row for each case, part and variant; the ratios are to the first variant."""
    rows = [["model", "network", "side", "K", "I", "batch", "part", "variant", "seconds"]]
    rows[0] += ["images/s", "time", "MiB", "memory", "timings"]
    first: dict[str, Record] = {}
    for entry in record["cases"]:
        part = entry["parts"][entry["part"]]
        of = first.setdefault(entry["name"], part)
        case = [str(entry[field]) for field in ("size", "slots", "steps", "batch", "part")]
        if not NETWORKS[entry["model"]].refines:
            case[2] = _NONE
        rows.append([MODELS[entry["model"]], entry["config"], *case, entry["variant"]])
        rows[-1] += [seconds(part), f"{entry['batch'] / part['median']:.3g}"]
        rows[-1] += [f"{part['median'] / of['median']:.2f}x", f"{part['peak_bytes'] / MIB:.1f}"]
        rows[-1] += [f"{part['peak_bytes'] / max(1, of['peak_bytes']):.2f}x"]
        rows[-1] += [str(len(part["seconds"]))]
    return rows


def laws(record: Record) -> Rows:
    """A row for each model, code and axis: what was fitted, and by how much a point is off it."""
    rows = [["training step of", "code", "against", "points", "seconds", "off by at most", "fit"]]
    for axis in ("slots", "size", "steps"):
        for model in record["bases"]:
            for code in ("ours", "released"):
                points = fits.points_of(record, model, code == "released", axis)
                if points:
                    found = [MODELS[model], code, fits.SYMBOLS[axis], str(len(points))]
                    rows.append([*found, *_law(axis, points)])
    return rows


def _law(axis: str, points: list[tuple[int, float]]) -> list[str]:
    fitted = fits.law(axis, points)
    if fitted is None:
        return [_NONE, _NONE, f"fewer than {fits.LEAST} points"]
    way = "least squares" + ("" if axis == "steps" else " of logarithms")
    off = fits.farthest(fitted, points)
    return [fitted.describe(fits.SYMBOLS[axis]), f"{off:.0%}", way]


def tables(record: Record) -> list[Rows]:
    """The tables of a record, without those that have no rows."""
    return [rows for rows in (results(record), laws(record)) if len(rows) > 1]
