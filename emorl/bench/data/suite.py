"""The suite of loading, as `emorl bench` knows it."""

from __future__ import annotations

from emorl.bench.data import figures, run, sources, tables
from emorl.bench.suite import Suite

SUITE = Suite(
    about="images per second of readers and generators, against what training eats",
    models=tuple(sources.SOURCES),
    sizes=(),
    batch=32,
    outline=run.outline,
    run=run.run,
    figures=figures.figures,
    tables=tables.tables,
    by_case=tables.by_case,
    caption=figures.caption,
    unused=("official", "memory"),
)
