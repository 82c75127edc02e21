"""The suite of quality, as `emorl bench` knows it."""

from __future__ import annotations

from emorl.bench.quality import figures, run, tables
from emorl.bench.suite import Suite

SUITE = Suite(
    about="what each model has learned after how many minutes, at laptop size",
    models=tuple(run.TITLES),
    sizes=(),
    batch=0,
    outline=run.outline,
    run=run.run,
    figures=figures.figures,
    tables=tables.tables,
    by_case=tables.by_case,
    caption=figures.caption,
    unused=("official", "memory"),
)
