"""The suites of `emorl bench`, and what a suite has to offer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from emorl.bench import paper, paper_figures, paper_plan, paper_run, paper_tables
from emorl.bench.options import Options
from emorl.bench.tables import Rows

Record = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """A suite: what it knows, and functions of the options or of a record.

    Attributes:
        models: keys of its models.
        sizes: of images, where none are asked for.
        check: raises a ValueError for a model that cannot have a size.
        outline: what would run, a row each.
        run: measures; writes the record whenever there is more of it, and returns it.
        figures: of a record, by the names of their files.
        tables: of a record.
        compare: a record's ratios to an earlier one.
        caption: machine, date and circumstances of a record.
    """

    models: Sequence[str]
    sizes: Sequence[int]
    check: Callable[[Options], None]
    outline: Callable[[Options], Rows]
    run: Callable[[Options, Callable[[Record], object]], Record]
    figures: Callable[[Record], dict[str, Figure]]
    tables: Callable[[Record], list[Rows]]
    compare: Callable[[Record, Record], Rows]
    caption: Callable[[Record], str]


SUITES = {
    "paper": Suite(
        models=tuple(paper.MODELS),
        sizes=paper.SIZES,
        check=paper.check,
        outline=paper_plan.outline,
        run=paper_run.run,
        figures=paper_figures.figures,
        tables=paper_tables.tables,
        compare=paper_tables.compare,
        caption=paper_figures.caption,
    ),
}


def read(path: Path) -> Record:
    """A record that a suite has written.

    Raises:
        ValueError: if the file is none.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        record = json.loads(path.read_text())
        suite = SUITES[record["suite"]]
        suite.caption(record)
        suite.tables(record)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    except (KeyError, TypeError, AttributeError):
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
    return SUITES[before["suite"]].compare(before, after)
