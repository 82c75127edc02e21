"""Tables of the paper's suite: results, ratios of models and of codes, the paper's claims."""

from __future__ import annotations

from emorl.bench.paper.cases import MODELS, OURS, RELEASED, TURNS
from emorl.bench.paper.claims import checklist
from emorl.bench.paper.timing import largest_of
from emorl.bench.passes import PARTS
from emorl.bench.suite import Record
from emorl.bench.tables import MIB, Rows, seconds

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
            + [*map(seconds, parts)]
            + [f"{p['peak_bytes'] / MIB:.0f}" for p in parts]
            + [str(len(parts[-1]["seconds"])), str(images) if images else _NONE]
        )
    return rows


def pairs(record: Record) -> Rows:
    """A row for each pair of `TURNS`, size and part: their ratio in ours and the released code."""
    rows = [["time of", "part", "size", OURS, RELEASED]]
    for slow, fast in TURNS:
        for size in sorted({entry["size"] for entry in record["cases"]}):
            for part in PARTS:
                ratios = [_ratio(record, slow, fast, code, size, part) for code in (OURS, RELEASED)]
                if ratios != [_NONE, _NONE]:
                    names = f"{MODELS[slow].title} / {MODELS[fast].title}"
                    rows.append([names, part, str(size), *ratios])
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
    made = (results(record), pairs(record), against_released(record), checklist(record))
    return [rows for rows in made if len(rows) > 1]


def by_case(record: Record) -> dict[str, Record]:
    """The parts of each case of a record, by the case's name."""
    found = {}
    for entry in record["cases"]:
        side = f"{entry['size']}x{entry['size']}"
        name = f"{MODELS[entry['model']].title}, {entry['code']}, {side}, batch {entry['batch']}"
        found[name] = entry["parts"]
    return found
