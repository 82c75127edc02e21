"""The suite of peers, as `emorl bench` knows it."""

from __future__ import annotations

from emorl.bench.figures import caption_of
from emorl.bench.peers import run
from emorl.bench.peers.tables import tables
from emorl.bench.suite import Suite
from emorl.bench.tables import by_case

SUITE = Suite(
    about="the same work in peers' own code",
    models=(),
    sizes=(),
    batch=4,
    check=run.check,
    outline=run.outline,
    run=run.run,
    figures=lambda record: {},
    tables=tables,
    by_case=by_case,
    caption=caption_of,
    unused=("official", "memory"),
)
