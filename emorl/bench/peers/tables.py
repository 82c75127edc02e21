"""Tables of the suite: how many times our time and memory a peer takes, and what was compared."""

from __future__ import annotations

from emorl.bench import tables as common
from emorl.bench.passes import FORWARD, PARTS
from emorl.bench.peers.cases import OURS, THEIRS
from emorl.bench.suite import Record
from emorl.bench.tables import Rows


def ratios(record: Record) -> Rows:
    """A row for each case and way of ours: theirs over ours, and what is not the same."""
    rows = [["theirs / ours", "ours", *(f"{part}, time" for part in PARTS)]]
    rows[0] += [*(f"{part}, memory" for part in PARTS), "not the same work", "remarks"]
    theirs = {e["name"]: e["parts"] for e in record["cases"] if e["variant"] == THEIRS}
    for entry in record["cases"]:
        if entry["variant"] == THEIRS or entry["name"] not in theirs:
            continue
        own, other = entry["parts"], theirs[entry["name"]]
        times = [other[part]["median"] / own[part]["median"] for part in PARTS]
        peaks = [other[p]["peak_bytes"] / max(1, own[p]["peak_bytes"]) for p in PARTS]
        numbers = [f"{ratio:.2f}x" for ratio in (*times, *peaks)]
        said = ["; ".join(entry[key]) or "-" for key in ("not_the_same", "remarks")]
        rows.append([entry["name"], entry["variant"], *numbers, *said])
    return rows


def compared(record: Record) -> Rows:
    """A row for each case: parameters, multiply-accumulates of both passes, first losses."""
    rows = [["case", "parameters, ours", "theirs", "the same"]]
    rows[0] += ["10^9 MACs an image, theirs", "ours, as published", "ours, as computed"]
    rows[0] += ["loss, ours", "theirs"]
    losses = {(e["name"], e["variant"]): e["parts"][FORWARD]["first_loss"] for e in record["cases"]}
    for entry in record["cases"]:
        if entry["variant"] != OURS:
            continue
        own, other = (entry["parameters"][code] for code in (OURS, THEIRS))
        row = [entry["name"], f"{own:,}", f"{other:,}", f"{entry['shared_parameters'] / own:.0%}"]
        row += [f"{count / 1e9:.2f}" for count in entry["macs"].values()]
        found = [losses.get((entry["name"], code)) for code in (OURS, THEIRS)]
        rows.append([*row, *("-" if loss is None else f"{loss:.7g}" for loss in found)])
    return rows


def tables(record: Record) -> list[Rows]:
    """The tables of a record, without those that have no rows."""
    made = (common.results(record), compared(record), ratios(record))
    return [rows for rows in made if len(rows) > 1]
