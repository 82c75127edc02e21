"""Tables of the paper's suite: results, the ratios that the paper claims, two records' ratios."""

from __future__ import annotations

from emorl.bench.paper import BOTH, FORWARD, MODELS, OURS, PARTS, RELEASED
from emorl.bench.paper_timing import Record, largest_of
from emorl.bench.tables import Rows

# Pairs of models, and what the paper says about their ratio: (part, size or None for all) -> text.
CLAIMS: dict[tuple[str, str], dict[tuple[str, int | None], str]] = {
    ("iodine", "e-0"): {(FORWARD, 128): "10x", (BOTH, 128): "6x"},
    ("slot-attention", "e-1"): {(FORWARD, None): "comparable"},
}
_NONE = "-"


def results(record: Record) -> Rows:
    """A row for each case: seconds, peaks, largest batch."""
    rows = [["model", "code", "size", *(f"{part}, s" for part in PARTS)]]
    rows[0] += [*(f"{part}, MiB" for part in PARTS), "timings", "largest batch"]
    for entry in record["cases"]:
        parts = [entry["parts"][part] for part in PARTS]
        images = largest_of(entry)
        rows.append(
            [MODELS[entry["model"]].title, entry["code"], str(entry["size"])]
            + [f"{p['median']:.3f} ({p['p20']:.3f} to {p['p80']:.3f})" for p in parts]
            + [f"{p['peak_bytes'] / 2**20:.0f}" for p in parts]
            + [str(len(parts[-1]["seconds"])), str(images) if images else _NONE]
        )
    return rows


def claims(record: Record) -> Rows:
    """A row for each ratio of the paper, size and part: ours, the released code's, the paper's."""
    rows = [["time of", "part", "size", OURS, RELEASED, "paper"]]
    for (slow, fast), claimed in CLAIMS.items():
        for size in sorted({entry["size"] for entry in record["cases"]}):
            for part in PARTS:
                ratios = [_ratio(record, slow, fast, code, size, part) for code in (OURS, RELEASED)]
                if ratios == [_NONE, _NONE]:
                    continue
                said = claimed.get((part, size)) or claimed.get((part, None)) or _NONE
                names = f"{MODELS[slow].title} / {MODELS[fast].title}"
                rows.append([names, part, str(size), *ratios, said])
    return rows


def _ratio(record: Record, slow: str, fast: str, code: str, size: int, part: str) -> str:
    found = {
        entry["model"]: entry["parts"][part]["median"]
        for entry in record["cases"]
        if (entry["code"], entry["size"]) == (code, size)
    }
    return f"{found[slow] / found[fast]:.2f}x" if {slow, fast} <= found.keys() else _NONE


def against_released(record: Record) -> Rows:
    """A row for each case of both codes: how many times ours the released code takes."""
    rows = [["released / ours", "size", *(f"{part}, time" for part in PARTS)]]
    rows[0] += [f"{part}, memory" for part in PARTS]
    cases = {(e["model"], e["code"], e["size"]): e["parts"] for e in record["cases"]}
    for (model, code, size), parts in cases.items():
        theirs = cases.get((model, RELEASED, size))
        if code == OURS and theirs is not None:
            times = [theirs[part]["median"] / parts[part]["median"] for part in PARTS]
            peaks = [theirs[p]["peak_bytes"] / max(1, parts[p]["peak_bytes"]) for p in PARTS]
            numbers = [f"{ratio:.2f}x" for ratio in (*times, *peaks)]
            rows.append([MODELS[model].title, str(size), *numbers])
    return rows


def tables(record: Record) -> list[Rows]:
    """The tables of a record, without those that have no rows."""
    made = (results(record), claims(record), against_released(record))
    return [rows for rows in made if len(rows) > 1]


def compare(before: Record, after: Record) -> Rows:
    """A row for each case and part of two records: seconds of both, and after over before.

    Raises:
        ValueError: if the records have no case in common.
    """
    first, second = _by_case(before), _by_case(after)
    rows = [["case", "part", "A, s", "B, s", "time, B/A", "memory, B/A"]]
    for case in [case for case in first if case in second]:
        for part in PARTS:
            a, b = first[case][part], second[case][part]
            peaks = b["peak_bytes"] / max(1, a["peak_bytes"])
            times = [f"{x['median']:.3f}" for x in (a, b)]
            ratio = f"{b['median'] / a['median']:.2f}x"
            rows.append([case, part, *times, ratio, f"{peaks:.2f}x"])
    if len(rows) == 1:
        raise ValueError("--compare: the two records have no case in common")
    rows += [[case, "only in one", *["-"] * 4] for case in sorted(first.keys() ^ second.keys())]
    return rows


def _by_case(record: Record) -> dict[str, Record]:
    found = {}
    for entry in record["cases"]:
        side = f"{entry['size']}x{entry['size']}"
        name = f"{MODELS[entry['model']].title}, {entry['code']}, {side}, batch {entry['batch']}"
        found[name] = entry["parts"]
    return found
