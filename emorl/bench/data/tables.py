"""Tables of the suite: images per second, and whether loading holds training up."""

from __future__ import annotations

from typing import Any

from emorl.bench.data.sources import SOURCES
from emorl.bench.suite import Record
from emorl.bench.tables import Rows

SLOWED = 0.05  # share of a step's time that loading in the same process may take unnoticed
_NONE = "-"


def rate_of(entry: Record) -> float:
    """Median images per second of a timed part or step."""
    return float(entry["images_per_second"]["median"])


def per_second(record: Record) -> Rows:
    """A row for each source, with and without masks: images per second by workers."""
    numbers = sorted({part["workers"] for e in record["cases"] for part in e["parts"].values()})
    rows = [["source", "size", "read", *(f"images/s, {n} workers" for n in numbers), "timings"]]
    for entry in record["cases"]:
        for masks in (False, True):
            rates = {p["workers"]: p for p in entry["parts"].values() if p["masks"] == masks}
            cells = [_rate(rates[n]) if n in rates else _NONE for n in numbers]
            what = "images, masks" if masks else "images"
            if rates:
                timings = str(min(len(part["seconds"]) for part in rates.values()))
                rows.append([SOURCES[entry["source"]].title, _size(entry), what, *cells, timings])
    return rows


def steps(record: Record) -> Rows:
    """A row for each training step: what it eats."""
    rows = [["training", "model", "batch", "images/s", "timings"]]
    for step in record["steps"]:
        row = [step["config"], step["model"], str(step["batch"]), _rate(step)]
        rows.append([*row, str(len(step["seconds"]))])
    return rows


def bottlenecks(record: Record) -> Rows:
    """A row for each source and each configuration that is trained on it: who waits for whom."""
    rows = [["source", "training", "eats, images/s", "loading is the bottleneck"]]
    for entry in record["cases"]:
        for step in hungriest(record, entry["source"]):
            name, eaten = f"{step['config']}, {step['model']}", rate_of(step)
            verdict = _verdict(entry, eaten)
            rows.append([SOURCES[entry["source"]].title, name, f"{eaten:.4g}", verdict])
    return rows


def hungriest(record: Record, source: str) -> list[Record]:
    """Of each configuration that is trained on a source, the step that eats most."""
    found: dict[str, Record] = {}
    for step in record["steps"]:
        best = found.setdefault(step["config"], step)
        if rate_of(step) > rate_of(best):
            found[step["config"]] = step
    return [found[config] for config in SOURCES[source].eaten_by if config in found]


def _verdict(entry: Record, eaten: float) -> str:
    """Whether training waits, of images without masks, as it reads them."""
    rates = {p["workers"]: rate_of(p) for p in entry["parts"].values() if not p["masks"]}
    if 0 in rates and eaten <= SLOWED * rates[0]:
        return f"no: without workers it adds {eaten / rates[0]:.1%} to a step"
    enough = [workers for workers, rate in rates.items() if workers and rate >= eaten]
    if enough:
        return f"not with {min(enough)} worker{'' if min(enough) == 1 else 's'}"
    best = max(rates, key=lambda workers: rates[workers])
    return f"yes: {rates[best] / eaten:.2f}x of what is eaten, with {best} workers"


def tables(record: Record) -> list[Rows]:
    """The tables of a record, without those that have no rows."""
    return [rows for rows in (per_second(record), steps(record), bottlenecks(record)) if rows[1:]]


def by_case(record: Record) -> dict[str, dict[str, Any]]:
    """The ways of each source, and the steps, as seconds for 1,000 images."""
    found = {
        SOURCES[entry["source"]].title: {
            f"1000 {way}": {"median": 1000 / rate_of(part)} for way, part in entry["parts"].items()
        }
        for entry in record["cases"]
    }
    for step in record["steps"]:
        name = f"step of {step['config']}, {step['model']}, batch {step['batch']}"
        found[name] = {"1000 images": {"median": 1000 / rate_of(step)}}
    return found


def _rate(entry: Record) -> str:
    """Median and quantiles, in images per second."""
    spread = entry["images_per_second"]
    low, middle, high = (_number(spread[name]) for name in ("p20", "median", "p80"))
    return f"{middle} ({low} to {high})"


def _number(rate: float) -> str:
    """With three digits, and no power of ten."""
    return f"{float(f'{rate:.3g}'):,.0f}" if rate >= 100 else f"{rate:.3g}"


def _size(entry: Record) -> str:
    height, width = entry["image_size"]
    return f"{height}x{width}"
