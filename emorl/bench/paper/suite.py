"""The paper's suite, as `emorl bench` knows it."""

from __future__ import annotations

from emorl.bench.paper import cases, figures, plan, run, tables
from emorl.bench.suite import Suite

SUITE = Suite(
    about="the time and memory plots of EfficientMORL's paper",
    models=tuple(cases.MODELS),
    sizes=cases.SIZES,
    batch=4,
    check=cases.check,
    outline=plan.outline,
    run=run.run,
    figures=figures.figures,
    tables=tables.tables,
    by_case=tables.by_case,
    caption=figures.caption,
)
