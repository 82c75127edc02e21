"""The table of the suite: what each model has learned in the end."""

from __future__ import annotations

from emorl.bench.quality.run import TITLES
from emorl.bench.suite import Record
from emorl.bench.tables import Rows

_NONE = "-"


def results(record: Record) -> Rows:
    """A row for each model: its last measurement."""
    rows = [["model", "slots", "seed", "minutes", "steps", "images", "FG-ARI", "mIoU, objects"]]
    rows[0] += ["MSE", "FG-ARI, real images"]
    for entry in record["cases"]:
        last = entry["points"][-1]
        own, real = last["generated"], last.get("real")
        planned = entry["planned_steps"]
        steps = str(last["step"]) if last["step"] == planned else f"{last['step']} of {planned}"
        rows.append(
            [
                TITLES[entry["model"]],
                str(entry["slots"]),
                str(entry["seed"]),
                f"{last['minutes']:.2f}",
                steps,
                str(entry["images_at_end" if real else "images"]["generated"]),
                f"{own['fg_ari']:.3f}",
                f"{own['fg_miou']:.3f}",
                f"{own['mse']:.4f}",
                f"{real['fg_ari']:.3f}" if real else _NONE,
            ]
        )
    return rows


def tables(record: Record) -> list[Rows]:
    """The tables of a record, without those that have no rows."""
    return [rows for rows in (results(record),) if rows[1:]]


def by_case(record: Record) -> dict[str, Record]:
    """The mean seconds of each model's training steps."""
    found = {}
    for entry in record["cases"]:
        last = entry["points"][-1]
        seconds = 60 * last["minutes"] / last["step"]
        found[f"{TITLES[entry['model']]}, batch {entry['batch']}"] = {
            "training step": {"median": seconds}
        }
    return found
