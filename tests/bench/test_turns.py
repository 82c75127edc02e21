"""Groups of variants that take turns."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from emorl.bench.suite import Options, Record
from emorl.bench.tables import by_case, ratios, results
from emorl.bench.turns import LEAST, MOST, Group, Turns, Variant
from emorl.bench.workers import Timing

PARTS = ("one", "two")


class Dead:
    def __call__(self) -> float:
        raise SystemExit(1)


def slow() -> dict[str, Any]:
    return {part: lambda: (time.sleep(0.5), Timing(0.5, 2.0))[1] for part in PARTS}


def timed(seconds: float, loss: float = 2.0) -> dict[str, Any]:
    return {part: lambda: Timing(seconds, loss) for part in PARTS}


def dead() -> dict[str, Any]:
    return {part: Dead() for part in PARTS}


def group(name: str, **variants: Any) -> Group:
    return Group(name, PARTS, {n: Variant(build) for n, build in variants.items()}, {"size": 8})


def run(groups: list[Group], budget: float = 60.0) -> tuple[Record, list[Record]]:
    options = Options((), (), 0, "cpu", 1, None, budget, 2**30)
    records: list[Record] = []
    turns = Turns(groups, {"suite": "x"}, options, records.append, "emorl.bench.workers")
    return turns(), records


def test_variants_take_turns_and_are_compared_with_the_first() -> None:
    both = group("work", ours=partial(timed, 0.5), plain=partial(timed, 1.5))
    record, records = run([both])
    assert records[-1] == record
    assert not record["failures"]
    assert not record["left_out"]
    ours, plain = record["cases"]
    assert (ours["name"], ours["variant"], ours["size"]) == ("work", "ours", 8)
    assert ours["parts"]["one"]["seconds"] == [0.5] * MOST
    assert plain["parts"]["two"]["median"] == 1.5
    assert [row[4] for row in results(record)[1:]] == ["1.00x", "1.00x", "3.00x", "3.00x"]
    assert ratios(by_case(record), by_case(record))[1][4] == "1.00x"


def test_losses_that_differ_are_a_failure_and_a_dead_process_is_left_out() -> None:
    odd = group("odd", a=partial(timed, 1.0), b=partial(timed, 1.0, 2.1), c=dead)
    record, _ = run([odd])
    assert record["failures"] == [f"odd, {p}: losses differ: a 2.0, b 2.1" for p in PARTS]
    assert record["left_out"] == ["odd, c: its process died"]
    assert [entry["variant"] for entry in record["cases"]] == ["a", "b"]


def test_what_finds_no_time_is_left_out_and_what_begins_is_timed_enough() -> None:
    names = ("first", "second")
    record, _ = run([group(name, a=slow) for name in names], budget=1.0)
    assert [len(e["parts"]["one"]["seconds"]) for e in record["cases"]] == [LEAST]
    assert record["left_out"] == ["second: no time"]


def test_a_run_that_timed_nothing_has_failed() -> None:
    record, _ = run([group("first", a=partial(timed, 1.0))], budget=0.0)
    assert record["failures"] == ["nothing was timed: --budget has no time for it"]
    assert record["left_out"] == ["first: no time"]


def test_interrupted_it_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [group(name, a=partial(timed, 1.0)) for name in ("first", "second", "third")]
    measure = Turns._measure

    def until_second(self: Turns, group: Group, share: float) -> None:
        if group.name == "second":
            raise KeyboardInterrupt
        measure(self, group, share)

    monkeypatch.setattr(Turns, "_measure", until_second)
    record, _ = run(groups)
    assert record["interrupted"]
    assert [entry["name"] for entry in record["cases"]] == ["first"]
    assert record["left_out"] == ["second: interrupted", "third: interrupted"]
