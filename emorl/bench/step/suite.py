"""The suite of training steps, as `emorl bench` knows it."""

from __future__ import annotations

from collections.abc import Callable

from emorl.bench.records import header
from emorl.bench.step import figures, plan, tables
from emorl.bench.step.cases import MODELS
from emorl.bench.suite import Options, Record, Suite
from emorl.bench.tables import by_case
from emorl.bench.turns import Turns


def run(options: Options, write: Callable[[Record], object]) -> Record:
    """Measure; as `Turns`."""
    own = {
        "batch": options.batch,
        "base_config": plan.BASE,
        "bases": plan.bases(options.models, options.batch),
    }
    record = {**header("step", options), **own}
    return Turns(plan.groups(options), record, options, write, "emorl.bench.step.build")()


SUITE = Suite(
    about="training steps and inferences, and how their cost grows",
    models=tuple(MODELS),
    sizes=plan.SIZES,
    batch=plan.BATCH,
    check=plan.check,
    outline=plan.outline,
    run=run,
    figures=figures.figures,
    tables=tables.tables,
    by_case=by_case,
    caption=figures.caption,
    unused=("memory",),
)
