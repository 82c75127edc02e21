"""What the paper says about time and memory (section 4.4, appendix E.3, abstract), as a checklist.

The paper prints no seconds and no batch sizes, only these ratios, of an RTX 2080 Ti. A number that
it gives counts as reproduced within a quarter, or beyond it for the better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from emorl.bench.paper.cases import OURS, RELEASED
from emorl.bench.paper.timing import largest_of
from emorl.bench.passes import BOTH, FORWARD
from emorl.bench.suite import Record
from emorl.bench.tables import Rows

BATCH = "largest batch"
_LESS, _MORE = 0.75, 1.25  # a quarter


class Claim(NamedTuple):
    """Ratios of one measure that lie between two bounds.

    Attributes:
        text: what is claimed.
        pairs: models; the first one's number is divided by the second one's.
        measures: a part's seconds, or the largest batch.
        least: of each ratio.
        most: of each ratio.
        sizes: of the images; None for all at which everything that it needs was measured.
    """

    text: str
    pairs: Sequence[tuple[str, str]]
    measures: Sequence[str]
    least: float
    most: float = float("inf")
    sizes: Sequence[int] | None = None


_IODINE = [("iodine", "e-0")]
_LARGE = ("e-0", "e-1", "e-0-s", "e-1-s", "e-3-s")
CLAIMS = [
    Claim("E-0 forward: 10x faster than IODINE", _IODINE, [FORWARD], 10 * _LESS, sizes=[128]),
    Claim(
        "E-0 with backward: 6x faster than IODINE",
        _IODINE,
        [BOTH],
        6 * _LESS,
        sizes=[128],
    ),
    Claim(
        "E-0, E-1 forward: comparable to Slot Attention",
        [("e-0", "slot-attention"), ("e-1", "slot-attention")],
        [FORWARD],
        0.0,
        _MORE,
    ),
    Claim("all but E-3: larger batches than IODINE", [(m, "iodine") for m in _LARGE], [BATCH], 1.0),
    Claim(
        "E-X-S: twice the batch of E-X",
        [(f"e-{x}-s", f"e-{x}") for x in (0, 1, 3)],
        [BATCH],
        2 * _LESS,
    ),
    Claim(
        "training and inference: nearly 10x faster than IODINE",
        _IODINE,
        [FORWARD, BOTH],
        10 * _LESS,
    ),
]


def checklist(record: Record) -> Rows:
    """A row for each claim: what it asks for, the ratios of both codes, and whether ours hold."""
    rows = [["claim", "asked for", OURS, RELEASED, "here"]]
    for claim in CLAIMS:
        ours, theirs = (_ratios(record, claim, code) for code in (OURS, RELEASED))
        rows.append(
            [claim.text, _asked(claim), _range(ours), _range(theirs), _verdict(claim, ours)]
        )
    return rows


def _ratios(record: Record, claim: Claim, code: str) -> list[float] | None:
    """The claim's ratios at each size where nothing is missing; None if there is no such size."""
    entries = {(e["model"], e["size"]): e for e in record["cases"] if e["code"] == code}
    found: list[float] = []
    for size in claim.sizes or sorted({size for _, size in entries}):
        numbers = [
            [_number(entries.get((model, size)), measure) for model in pair]
            for measure in claim.measures
            for pair in claim.pairs
        ]
        if all(map(all, numbers)):
            found += [first / second for first, second in numbers]
    return found or None


def _number(entry: Record | None, measure: str) -> float:
    """The seconds of a part, or the images of the largest batch; 0 if it is not known."""
    if entry is None:
        return 0.0
    if measure == BATCH:
        return largest_of(entry)
    return float(entry["parts"][measure]["median"])


def _asked(claim: Claim) -> str:
    measure = " and ".join(claim.measures)
    least = f"at least {claim.least:g}x" if claim.least else ""
    most = f"at most {claim.most:g}x" if claim.most < float("inf") else ""
    size = f" at {claim.sizes[0]}x{claim.sizes[0]}" if claim.sizes else ""
    return f"{measure}{size}: {least or most}"


def _range(ratios: list[float] | None) -> str:
    if ratios is None:
        return "-"
    low, high = min(ratios), max(ratios)
    return f"{low:.2f}x" if len(ratios) == 1 else f"{low:.2f}x to {high:.2f}x"


def _verdict(claim: Claim, ratios: list[float] | None) -> str:
    if ratios is None:
        return "not testable"
    holds = all(claim.least <= ratio <= claim.most for ratio in ratios)
    return "reproduced" if holds else "not reproduced"
