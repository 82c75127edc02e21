"""The suites of `emorl bench`, and the records that they have written."""

from __future__ import annotations

from pathlib import Path

import emorl.bench.data.suite
import emorl.bench.ops.suite
import emorl.bench.paper.suite
import emorl.bench.peers.suite
import emorl.bench.quality.suite
import emorl.bench.step.suite
from emorl.bench.suite import Record
from emorl.bench.tables import Rows, ratios
from emorl.runs.files import read_json

SUITES = {
    "paper": emorl.bench.paper.suite.SUITE,
    "ops": emorl.bench.ops.suite.SUITE,
    "step": emorl.bench.step.suite.SUITE,
    "data": emorl.bench.data.suite.SUITE,
    "quality": emorl.bench.quality.suite.SUITE,
    "peers": emorl.bench.peers.suite.SUITE,
}


def read(path: Path) -> Record:
    """A record that a suite has written.

    Raises:
        ValueError: if the file is none.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    record = read_json(path)
    try:
        suite = SUITES[record["suite"]]
        suite.caption(record)
        suite.tables(record)
        suite.by_case(record)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        raise ValueError(f"{path}: not a record of emorl bench") from None
    return dict(record)


def compare(first: Path, second: Path) -> Rows:
    """The ratios of two records of one suite, case by case.

    Raises:
        ValueError: if they are not that, or have no case in common.
    """
    before, after = read(first), read(second)
    if before["suite"] != after["suite"]:
        raise ValueError(f"--compare: the suites differ: {before['suite']}, {after['suite']}")
    by_case = SUITES[before["suite"]].by_case
    return ratios(by_case(before), by_case(after))
