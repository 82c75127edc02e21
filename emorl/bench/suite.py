"""What a suite of `emorl bench` has to offer, and what it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl.bench.tables import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """The command line, checked.

    Attributes:
        models: keys of the suite's models, in its order.
        sizes: sides of the square images, in pixels, ascending; none where a suite has none.
        batch: images at once, where time is measured; 0 where the suite's cases have their own.
        device: "cpu" or "cuda".
        threads: of PyTorch.
        official: a checkout of the released code, if there is one.
        budget: seconds that everything may take.
        memory: bytes, for which the largest batch is sought.
        peers: names of peers, and checkouts of their code.
    """

    models: tuple[str, ...]
    sizes: tuple[int, ...]
    batch: int
    device: str
    threads: int
    official: Path | None
    budget: float
    memory: int
    peers: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True)
class Suite:
    """A suite: what it knows, and functions of the options or of a record.

    Attributes:
        about: what it measures, in a few words.
        models: keys of its models, or of what else can be chosen by --models.
        sizes: of images, where none are asked for; empty where its cases have their own.
        batch: where none is asked for; 0 where its cases have their own.
        check: raises a ValueError for a model that cannot have a size.
        outline: what would run, a row each.
        run: measures; writes the record whenever there is more of it, and returns it.
        figures: of a record, by the names of their files.
        tables: of a record.
        by_case: the parts of each case of a record, by the case's name.
        caption: machine, date and circumstances of a record.
        unused: options of the command line that mean nothing to it: "official", "memory".
    """

    about: str
    models: Sequence[str]
    sizes: Sequence[int]
    batch: int
    outline: Callable[[Options], Rows]
    run: Callable[[Options, Callable[[Record], object]], Record]
    figures: Callable[[Record], dict[str, Figure]]
    tables: Callable[[Record], list[Rows]]
    by_case: Callable[[Record], dict[str, Record]]
    caption: Callable[[Record], str]
    check: Callable[[Options], None] = lambda options: None
    unused: Sequence[str] = ()
