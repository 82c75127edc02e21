"""Tables of the operators' suite: time and memory as ratios to the native form, and the roof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from emorl.bench.suite import Record
from emorl.bench.tables import MIB, Rows

# In the order of their columns.
VARIANTS = ("native", "triton", "plain", "sdpa", "compiled", "lucidrains", "lucidrains compiled")
_NONE = "-"


class Result(NamedTuple):
    """What was measured of one part of one work.

    Attributes:
        first: the variant that the others are compared with.
        parts: of the record, by variant.
        time: how many times the first one's time a variant takes, both measured in turns.
        memory: how many times its memory; where it needs 1 MiB or more.
    """

    entry: Record
    part: str
    first: str
    parts: dict[str, Record]
    time: dict[str, float]
    memory: dict[str, float]


def of_works(record: Record) -> list[Result]:
    """A result for each work and part; groups of the same work become one."""
    firsts: dict[str, Record] = {}
    found: dict[tuple[str, str], Result] = {}
    for entry in record["cases"]:
        first = firsts.setdefault(entry["name"], entry)
        for part, numbers in entry["parts"].items():
            of, name = first["parts"][part], entry["variant"]
            made = Result(entry, part, first["variant"], {}, {}, {})
            result = found.setdefault((entry["work"], part), made)
            result.parts.setdefault(name, numbers)
            result.time.setdefault(name, numbers["median"] / of["median"])
            if of["peak_bytes"] >= MIB:
                result.memory.setdefault(name, numbers["peak_bytes"] / of["peak_bytes"])
    return [*found.values()]


def tables(record: Record) -> list[Rows]:
    """The tables of a record, without those that have no rows."""
    made = (_times(record), _memories(record), _roof(record))
    return [rows for rows in made if len(rows) > 1]


def _times(record: Record) -> Rows:
    """A row for each work and part: times, and the first variant's share of a copy's bandwidth."""
    heading, *rows = _table(record, "ms", _time)
    rates = [_rates(record, result) for result in of_works(record)]
    heading += ["GB/s", "of a copy's", "timings"]
    return [heading, *(row + rate for row, rate in zip(rows, rates, strict=True))]


def _memories(record: Record) -> Rows:
    return _table(record, "MiB", _memory)


def _table(record: Record, unit: str, cell: Callable[[Result, str], str]) -> Rows:
    """A row for each work and part: a number of each variant, and its ratio to the first one's."""
    results = of_works(record)
    seen = {name for result in results for name in result.parts}
    variants = [name for name in VARIANTS if name in seen]
    rows = [["work", "part", *(f"{name}, {unit}" for name in variants)]]
    for result in results:
        cells = [cell(result, name) if name in result.parts else _NONE for name in variants]
        rows.append([result.entry["work"], result.part, *cells])
    return rows


def _time(result: Result, variant: str) -> str:
    part = result.parts[variant]
    if variant == result.first:
        low, high = 1e3 * part["p20"], 1e3 * part["p80"]
        return f"{1e3 * part['median']:.3g} ({low:.3g} to {high:.3g})"
    return f"{1e3 * part['median']:.3g} ({result.time[variant]:.2f}x)"


def _memory(result: Result, variant: str) -> str:
    mebibytes = f"{result.parts[variant]['peak_bytes'] / MIB:.1f}"
    ratio = result.memory.get(variant)
    return mebibytes if ratio is None or variant == result.first else f"{mebibytes} ({ratio:.2f}x)"


def _rates(record: Record, result: Result) -> list[str]:
    """Of the first variant: bytes a second, its share of a large copy's, timings."""
    part = result.parts[result.first]
    timings = str(len(part["seconds"]))
    if "costs" not in result.entry:
        return [_NONE, _NONE, timings]
    rate = result.entry["costs"][result.part]["bytes"] / part["median"]
    share = rate / record["roof"]["bytes_per_second"]
    return [f"{rate / 1e9:.3g}", f"{100 * share:.0f} %", timings]


def _roof(record: Record) -> Rows:
    """What the machine did at most."""
    roof: dict[str, Any] = record["roof"]
    rows = [["at most", "measured by", "a second"]]
    rows.append(["bytes", "a large copy", f"{roof['bytes_per_second'] / 1e9:.3g} GB"])
    for dtype, rate in roof["operations_per_second"].items():
        rows.append([f"operations, {dtype}", "a matrix product", f"{rate / 1e9:.4g} G"])
    return rows
