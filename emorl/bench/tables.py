"""Tables of benchmarks, and their form as text."""

from __future__ import annotations

from typing import Any

Rows = list[list[str]]  # the first one is the heading
MIB = 2**20


def as_text(rows: Rows) -> str:
    """Aligned columns, in Markdown."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def seconds(part: dict[str, Any]) -> str:
    """Median and quantiles of a part's timings."""
    return f"{part['median']:.3g} ({part['p20']:.3g} to {part['p80']:.3g})"


def results(record: dict[str, Any]) -> Rows:
    """A row for each case and part of groups that took turns.

    The ratios are to the first variant of the group: how many times its time and memory.
    """
    rows = [["case", "variant", "part", "seconds", "time", "MiB", "memory", "timings"]]
    first: dict[str, dict[str, Any]] = {}
    for entry in record["cases"]:
        reference = first.setdefault(entry["name"], entry["parts"])
        for name, part in entry["parts"].items():
            of = reference[name]
            time = f"{part['median'] / of['median']:.2f}x"
            memory = f"{part['peak_bytes'] / max(1, of['peak_bytes']):.2f}x"
            mebibytes = f"{part['peak_bytes'] / MIB:.1f}"
            row = [entry["name"], entry["variant"], name, seconds(part), time, mebibytes, memory]
            rows.append([*row, str(len(part["seconds"]))])
    return rows


def by_case(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of each variant of groups that took turns, by the names of both."""
    return {f"{entry['name']}, {entry['variant']}": entry["parts"] for entry in record["cases"]}


def ratios(first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]) -> Rows:
    """A row for each case and part of two records: seconds of both, and B over A.

    Args:
        first: the parts of each case of record A, by the case's name.
        second: those of record B.

    Raises:
        ValueError: if the records have no case in common.
    """
    rows = [["case", "part", "A, s", "B, s", "time, B/A", "memory, B/A"]]
    for case in [case for case in first if case in second]:
        for part, a in first[case].items():
            b = second[case].get(part)
            if b is None:
                continue
            memory = "-"  # of suites that measure none
            if "peak_bytes" in a and "peak_bytes" in b:
                memory = f"{b['peak_bytes'] / max(1, a['peak_bytes']):.2f}x"
            times = [f"{x['median']:.3g}" for x in (a, b)]
            ratio = f"{b['median'] / a['median']:.2f}x"
            rows.append([case, part, *times, ratio, memory])
    if len(rows) == 1:
        raise ValueError("--compare: the two records have no case in common")
    rows += [[case, "only in one", *["-"] * 4] for case in sorted(first.keys() ^ second.keys())]
    return rows
