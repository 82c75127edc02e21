"""Running the suite: weights and work are compared first, then the codes take turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from emorl.bench import records
from emorl.bench.passes import PARTS
from emorl.bench.peers.cases import PEERS, THEIRS, Case, comparison, steps, variants
from emorl.bench.peers.peer import check as check_peer
from emorl.bench.suite import Options, Record
from emorl.bench.tables import Rows
from emorl.bench.turns import ROUNDING, Group, Turns, Variant
from emorl.bench.workers import Worker
from emorl.fields import shown
from emorl.suggestions import near

_PRELOAD = "emorl.bench.peers.cases"


def check(options: Options) -> None:
    """Make sure that there are peers, known ones, each with a checkout.

    Raises:
        ValueError: naming the first that is not so.
    """
    names = ", ".join(PEERS)
    if not options.peers:
        raise ValueError(f"--peer: expected NAME PATH at least once; names: {names}")
    for name, checkout in options.peers:
        if name not in PEERS:
            raise ValueError(f"--peer: unknown {shown(name)}{near(name, PEERS)}")
        check_peer(name, PEERS[name], checkout)


def cases(options: Options) -> list[Case]:
    """Each peer at its sizes."""
    return [
        Case(name, checkout, size, options.batch, options.device)
        for name, checkout in options.peers
        for size in PEERS[name].sizes
    ]


def outline(options: Options) -> Rows:
    """A row for each case."""
    heading = ["case", "device", "parts", "variants", "their code", "licence"]
    rows = [heading]
    for case in cases(options):
        peer = PEERS[case.peer]
        row = [str(case), options.device, ", ".join(PARTS), ", ".join(variants(case))]
        rows.append([*row, peer.repository, peer.licence])
    return rows


def run(options: Options, write: Callable[[Record], object]) -> Record:
    """Measure; as `Turns`.

    Raises:
        ValueError: if a peer's code cannot be used.
    """
    begin = time.perf_counter()
    groups = [_group(case, _compared(case, options)) for case in cases(options)]
    spent = time.perf_counter() - begin
    header = {**records.header("peers", options), "dtype": "float32", "batch": options.batch}
    left = replace(options, budget=max(1.0, options.budget - spent))
    return Turns(groups, header, left, write, _PRELOAD)()


def _compared(case: Case, options: Options) -> Record:
    """The comparison of a case, in a process of its own: modules of peers have the same names."""
    with Worker(dict, options.threads, keep=False, preload=_PRELOAD) as worker:
        try:
            found: Record | str = worker.call(partial(_comparison_or_error, case))
        except (EOFError, ConnectionError):
            found = f"--peer {case.peer}: {case}: its process died"
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _comparison_or_error(case: Case) -> Record | str:
    try:
        return comparison(case)
    except ValueError as error:
        return str(error)


def _group(case: Case, compared: Record) -> Group:
    peer = PEERS[case.peer]
    rounding = math.inf if peer.differences else ROUNDING  # of another work, losses may be any
    ways = {name: Variant(partial(steps, case, name), keep=True) for name in variants(case)}
    ways[THEIRS] = replace(ways[THEIRS], keep=False, rounding=rounding)
    remarks = list(peer.remarks)
    if peer.stand_ins:
        remarks.append(f"stand-ins for {', '.join(peer.stand_ins)}")
    entry = {
        **{"peer": case.peer, "size": case.size, "repository": peer.repository},
        **{"licence": peer.licence, "not_the_same": [*peer.differences], "remarks": remarks},
        **compared,
    }
    return Group(str(case), PARTS, ways, entry)
