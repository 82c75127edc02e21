"""A run of the paper's suite: survey, plan, timings in turns, largest batches, and their record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from emorl.bench.budget import ENOUGH, Item, plan, require_least, total
from emorl.bench.paper import cases as paper
from emorl.bench.paper.cases import OURS, Case, Survey
from emorl.bench.paper.plan import batch_item, items_of, least_of
from emorl.bench.paper.timing import (
    free_memory,
    header,
    largest_batch,
    largest_of,
    losses_that_differ,
    peak_of,
    survey_worker,
    time_once,
    timings_of,
    warmed_up,
    worker_of,
)
from emorl.bench.passes import BOTH
from emorl.bench.records import with_quantiles
from emorl.bench.suite import Options, Record
from emorl.bench.workers import left_out_if_dead
from emorl.terminal import progress

CONFIRMED = 2  # models whose largest batch is tried, on the CPU
_CONFIRMING = 0.05  # share of the budget for that
_SPARE = 1.25  # how many times the memory must be free for that
DIED = "its process died"
_QUICKEST = 0.25  # pace, lest what was measured in a lucky moment fills the plan
_BAR = "{percentage:3.0f}%|{bar}| {elapsed} gone, about {remaining} left{postfix}"


class Run:
    """A run of the suite, which can be interrupted and keeps what it has.

    Args:
        options: of the command line.
        write: is given the record whenever there is more of it.
    """

    def __init__(self, options: Options, write: Callable[[Record], object]) -> None:
        self._options, self._write = options, write
        with_released = options.official is not None
        self._cases = paper.cases(options.models, options.sizes, options.batch, with_released)
        self._entries: dict[str, Record] = {}  # in order of measuring
        self._reasons: dict[str, str] = {}  # of what is left out, where it is not the time
        self._planned: dict[str, int] = {}
        self._pace = 1.0  # how many times as long as surveyed it takes
        self._header = header(options)
        self._begin = time.perf_counter()

    def __call__(self) -> Record:
        """Run, and return the record.

        Raises:
            ValueError: if the least does not fit into a full budget.
        """
        interrupted = False
        with progress(total=1.0, bar_format=_BAR, leave=False) as self._bar:
            try:
                self._run()
            except KeyboardInterrupt:
                interrupted = True
        return self._save(interrupted)

    def _run(self) -> None:
        surveys, start = self._survey()
        items = items_of(surveys, start, self._options.device)
        require_least(items, self._left, self._options.budget)
        for group in paper.groups([*surveys]):
            self._plan(items)
            own = [item for item in items if item.name in {str(case) for case in group}]
            began, surveyed = time.perf_counter(), total(own, self._planned)
            self._measure([case for case in group if self._planned[str(case)]])
            if surveyed:
                self._pace = max(_QUICKEST, (time.perf_counter() - began) / surveyed)
            items = [item for item in items if item not in own]
            self._save(interrupted=True)  # as it would be, were the process killed
        self._plan(items)
        for case in surveys:
            item = self._costs[batch_item(case)]
            if str(case) in self._entries and self._planned[item.name] and item.start < self._left:
                self._find_largest(case)
                self._save(interrupted=True)
        if self._options.device == "cpu":
            self._confirm(surveys)

    @property
    def _left(self) -> float:
        """Seconds of the budget that are left."""
        return self._options.budget - (time.perf_counter() - self._begin)

    def _survey(self) -> tuple[dict[Case, Survey], float]:
        """Survey each model at the smallest size, for the others by their pixels.

        Takes half the budget at most.

        Returns:
            The survey of one image of each case, and the seconds that a process takes to start.
        """
        found: dict[tuple[str, str], Survey] = {}
        smallest, half = min(self._options.sizes), self._options.budget / 2
        waiting = [case for case in self._cases if case.size == smallest]
        self._start()  # with what only the first process has to wait for
        start = self._start()
        while waiting and self._left > half:
            with survey_worker(self._options) as worker:
                while waiting and self._left > half:
                    case = waiting.pop(0)
                    self._tell(f"first step of {case}")
                    one = partial(paper.survey, case._replace(batch=1), *self._where)
                    try:
                        found[case.model, case.code] = worker.call(one)
                    except (EOFError, ConnectionError):
                        self._reasons |= {str(each): DIED for each in self._same(case)}
                        break
        self._header["operators"] = {
            model: seen.operators for (model, code), seen in found.items() if code == OURS
        }
        surveys = {}
        for case in self._cases:
            if seen := found.get((case.model, case.code)):
                surveys[case] = seen.scaled((case.size / smallest) ** 2)
        return surveys, start

    def _start(self) -> float:
        """Seconds that a process takes to start."""
        began = time.perf_counter()
        with survey_worker(self._options) as worker:
            worker.call(time.perf_counter)
        return time.perf_counter() - began

    def _same(self, case: Case) -> list[Case]:
        """The case at all sizes."""
        return [c for c in self._cases if (c.model, c.code) == (case.model, case.code)]

    @property
    def _where(self) -> tuple[Path | None, str]:
        return self._options.official, self._options.device

    def _tell(self, text: str, seconds: float = 0.0) -> None:
        """Say what comes next, after so many planned seconds."""
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(seconds)
        self._bar.refresh()

    def _plan(self, items: Sequence[Item]) -> None:
        """Plan what there is to do in the time that is left, at the pace of late."""
        slower = [
            item._replace(start=self._pace * item.start, each=self._pace * item.each)
            for item in items
        ]
        kept = _CONFIRMING * self._options.budget if self._options.device == "cpu" else 0.0
        self._planned |= plan(slower, self._left - kept)
        self._costs = {item.name: item for item in slower}
        self._bar.total = self._bar.n + total(slower, self._planned)

    def _measure(self, cases: Sequence[Case]) -> None:
        """Time cases, which take turns."""
        counts = {case: self._planned[str(case)] for case in cases}
        with ExitStack() as stack:
            workers = {
                str(case): stack.enter_context(worker_of(case, self._options)) for case in cases
            }
            for case in cases:
                self._tell(str(case))
                with left_out_if_dead(workers, str(case)):
                    self._entries[str(case)] = warmed_up(case, workers[str(case)], self._options)
                self._tell(str(case), self._costs[str(case)].start)
            for n in range(max(counts.values(), default=0)):
                for case in [case for case in cases if str(case) in workers and n < counts[case]]:
                    if self._left <= 0:
                        break
                    with left_out_if_dead(workers, str(case)):
                        time_once(self._entries[str(case)], workers[str(case)])
                    self._tell(str(case), self._costs[str(case)].each)
        self._reasons |= {str(case): DIED for case in cases if str(case) not in workers}

    def _find_largest(self, case: Case) -> None:
        self._tell(batch_item(case))
        entry = self._entries[str(case)]
        try:
            entry["largest_batch"] = largest_batch(case, entry, self._options)
        except (EOFError, ConnectionError):
            self._reasons[batch_item(case)] = DIED
        self._tell("", self._costs[batch_item(case)].start)

    def _confirm(self, surveys: dict[Case, Survey]) -> None:
        """Try the largest batches of the quickest models."""
        found = [
            case
            for case in surveys
            if case.code == OURS and largest_of(self._entries.get(str(case), {}))
        ]
        for case in sorted(found, key=lambda case: surveys[case].seconds[BOTH])[:CONFIRMED]:
            result = self._entries[str(case)]["largest_batch"]
            tried = case._replace(batch=result["images"])
            seconds = self._pace * sum(surveys[case].seconds.values()) * tried.batch
            name = f"confirming the {batch_item(case)}"
            self._tell(name)
            if free_memory() < _SPARE * self._options.memory:
                self._reasons[name] = "the machine has not so much free memory"
            elif seconds > self._left:
                self._reasons[name] = f"it would take about {seconds:.0f} s"
            else:
                try:
                    result["confirmed_peak_bytes"] = peak_of(tried, self._options)
                except (EOFError, ConnectionError):
                    self._reasons[name] = DIED

    def _save(self, interrupted: bool) -> Record:
        """Write the record of all that is there."""
        entries = [with_quantiles(entry) for entry in self._entries.values() if timings_of(entry)]
        failures = losses_that_differ(entries)
        if not entries:
            failures.append("nothing was timed: --budget has no time even for first steps")
        if self._options.budget >= ENOUGH:
            failures += self._short_of_least()
        record = {
            **self._header,
            "interrupted": interrupted,
            "failures": failures,
            "left_out": self._left_out("interrupted" if interrupted else "no time"),
            "cases": entries,
        }
        self._write(record)
        return record

    def _short_of_least(self) -> list[str]:
        timings = {case: timings_of(self._entries.get(str(case), {})) for case in self._cases}
        return [
            f"{case}: {done} of {least_of(case)} timings"
            for case, done in timings.items()
            if done < least_of(case)
        ]

    def _left_out(self, why: str) -> list[str]:
        """What is missing, and the reason: its own, or `why`."""
        missing, reasons = [], dict(self._reasons)
        for case in self._cases:
            entry = self._entries.get(str(case), {})
            if not timings_of(entry):
                missing.append(str(case))
            elif "largest_batch" not in entry:
                missing.append(batch_item(case))
        left_out = [f"{name}: {reasons.pop(name, why)}" for name in missing]
        return left_out + [f"{name}: {reason}" for name, reason in reasons.items()]


def run(options: Options, write: Callable[[Record], object]) -> Record:
    """Run the suite; as `Run`."""
    return Run(options, write)()
