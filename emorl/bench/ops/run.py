"""A run of the operators' suite: what the machine can do at most, then groups that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from emorl.bench import records
from emorl.bench.ops.cases import dtypes
from emorl.bench.ops.peaks import peaks
from emorl.bench.ops.plan import groups, obstacles
from emorl.bench.suite import Options, Record
from emorl.bench.turns import Turns
from emorl.bench.workers import Worker
from emorl.ops import backends

_PRELOAD = "emorl.bench.ops.plan"  # of which the CPU's processes are forks


def run(options: Options, write: Callable[[Record], object]) -> Record:
    """Run the suite within the budget, and return the record.

    Args:
        options: of the command line.
        write: is given the record whenever there is more of it.
    """
    begin = time.perf_counter()
    obstructed = obstacles(options)
    header = _header(options)
    rest = replace(options, budget=options.budget - (time.perf_counter() - begin))

    def complete(record: Record) -> Record:
        return {**record, "left_out": [*obstructed, *record["left_out"]]}

    turns = Turns(groups(options), header, rest, lambda x: write(complete(x)), _PRELOAD)
    return complete(turns())


def _header(options: Options) -> Record:
    """What the record says beside its results.

    "native" and "triton" are asked for by name, and raise an error where they cannot run: so the
    variant that an entry names is the one that ran.
    """
    on_gpu = options.device == "cuda"
    preload = None if on_gpu else _PRELOAD
    with Worker(dict, options.threads, keep=False, preload=preload) as worker:
        most = worker.call(partial(peaks, options.device, dtypes(options.device)))
    return {
        **records.header("ops", options),
        "backends": {
            operator: [name for name, reason in found.items() if reason is None]
            for operator, found in backends(options.device).items()
        },
        "roof": most,
        "peaks": "allocated in all" if on_gpu else "above inputs and libraries",
    }
