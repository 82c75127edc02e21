"""The operators' suite, as `emorl bench` knows it."""

from __future__ import annotations

from emorl.bench.ops import figures, plan, run, tables
from emorl.bench.suite import Suite
from emorl.bench.tables import by_case

SUITE = Suite(
    about="the operators against plain PyTorch, torch.compile and others' forms",
    models=plan.MODELS,
    sizes=(),
    batch=0,
    outline=plan.outline,
    run=run.run,
    figures=figures.figures,
    tables=tables.tables,
    by_case=by_case,
    caption=figures.caption,
    unused=("official", "memory"),
)
