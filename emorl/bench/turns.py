"""Groups of variants of the same work, timed in turns within a budget of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from emorl.bench.records import with_quantiles
from emorl.bench.suite import Options, Record
from emorl.bench.workers import Step, TimedStep, Worker, left_out_if_dead
from emorl.terminal import progress

LEAST, MOST = 3, 9  # timings of a variant
WARM_UP = 5  # steps on a GPU: kernels are chosen, graphs captured
ROUNDING = 1e-4  # by which losses may differ, as a share


def warm_up(device: str) -> int:
    """Steps before the first timing."""
    return WARM_UP if device == "cuda" else 1


@dataclass(frozen=True)
class Variant:
    """A way to do a group's work.

    Attributes:
        build: makes its steps, by part, in a process of its own: a top-level function, or a
            `partial` of one.
        keep: whether that process keeps its memory, as training on the CPU does.
        rounding: by how much its losses may differ from the first variant's, as a share.
    """

    build: Callable[[], Mapping[str, Step | TimedStep]]
    keep: bool = False
    rounding: float = ROUNDING


@dataclass(frozen=True)
class Group:
    """Variants that take turns, so that all see the same machine.

    Attributes:
        name: of the work; the key of its groups' entries.
        parts: names of the steps that every variant has, in the order in which they run.
        variants: by their names; the first one is what the others are compared with.
        entry: what the record says about each of them beside its name and its numbers.
    """

    name: str
    parts: Sequence[str]
    variants: Mapping[str, Variant]
    entry: Record = field(default_factory=dict)


class Turns:
    """A run of groups, which can be interrupted and keeps what it has.

    Each group has an equal share of the time that is left, and at least `LEAST` timings of each
    variant once it has begun; what finds no time is left out.

    Args:
        groups: in the order of their importance.
        header: what the record says beside its results.
        options: of the command line.
        write: is given the record whenever there is more of it.
        preload: a module of which the CPU's processes are forks.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        header: Record,
        options: Options,
        write: Callable[[Record], object],
        preload: str,
    ) -> None:
        self._groups, self._header, self._options, self._write = groups, header, options, write
        self._preload = preload if options.device == "cpu" else None  # no fork can use a GPU
        self._warm_up = warm_up(options.device)
        self._entries: list[Record] = []
        self._failures: list[str] = []
        self._left_out: list[str] = []
        self._begin = time.perf_counter()

    def __call__(self) -> Record:
        """Run, and return the record."""
        waiting = [*self._groups]
        try:
            with progress(total=len(waiting), unit="group", leave=False) as bar:
                while waiting and self._left > 0:
                    bar.set_postfix_str(waiting[0].name)
                    self._measure(waiting[0], self._left / len(waiting))
                    waiting.pop(0)
                    bar.update()
                    self._save(waiting, interrupted=True)  # as if the process were killed now
        except KeyboardInterrupt:
            return self._save(waiting, interrupted=True)
        return self._save(waiting, interrupted=False)

    @property
    def _left(self) -> float:
        """Seconds of the budget that are left."""
        return self._options.budget - (time.perf_counter() - self._begin)

    def _measure(self, group: Group, share: float) -> None:
        """Time the variants of a group for so many seconds, at least `LEAST` times."""
        end = time.perf_counter() + share
        entries: dict[str, Record] = {}
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(self._worker(variant))
                for name, variant in group.variants.items()
            }
            for name in group.variants:
                with left_out_if_dead(workers, name):
                    entries[name] = self._warmed_up(group, name, workers[name])
            for done in range(MOST):
                if done >= LEAST and time.perf_counter() >= end:
                    break
                for name, worker in [*workers.items()]:
                    with left_out_if_dead(workers, name):
                        for part, numbers in entries[name]["parts"].items():
                            numbers["seconds"].append(worker.step(part)[0])
        self._left_out += [
            f"{group.name}, {name}: its process died"
            for name in group.variants
            if name not in workers
        ]
        found = [with_quantiles(entries[name]) for name in workers]
        self._failures += _differing(group, found)
        self._entries += found

    def _worker(self, variant: Variant) -> Worker:
        return Worker(variant.build, self._options.threads, variant.keep, self._preload)

    def _warmed_up(self, group: Group, variant: str, worker: Worker) -> Record:
        """Run the first steps of a variant, and take down its first losses and its peaks."""
        parts: dict[str, Any] = {}
        for part in group.parts:
            losses = [worker.step(part)[1] for _ in range(self._warm_up)]
            parts[part] = {"first_loss": losses[0], "seconds": [], "peak_bytes": worker.peak()}
        return {"name": group.name, "variant": variant, **group.entry, "parts": parts}

    def _save(self, waiting: Sequence[Group], interrupted: bool) -> Record:
        """Write the record of all that is there."""
        why = "interrupted" if interrupted else "no time"
        nothing = [] if self._entries else ["nothing was timed: --budget has no time for it"]
        record = {
            **self._header,
            "interrupted": interrupted,
            "failures": [*self._failures, *nothing],
            "left_out": [*self._left_out, *(f"{group.name}: {why}" for group in waiting)],
            "cases": self._entries,
        }
        self._write(record)
        return record


def _differing(group: Group, entries: Sequence[Record]) -> list[str]:
    """A line for each loss that is not the first variant's."""
    found = []
    for entry in entries[1:]:
        rounding = group.variants[entry["variant"]].rounding
        for part in group.parts:
            first, own = (e["parts"][part]["first_loss"] for e in (entries[0], entry))
            if not abs(own - first) <= rounding * abs(first):
                names = f"{entries[0]['variant']} {first}, {entry['variant']} {own}"
                found.append(f"{group.name}, {part}: losses differ: {names}")
    return found
