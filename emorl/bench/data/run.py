"""Running the suite: each source in each way, then the steps that eat, within a budget of time."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from emorl.bench import records
from emorl.bench.budget import ENOUGH
from emorl.bench.data.reading import Way, timing
from emorl.bench.data.sources import SOURCES, WORKERS, Source
from emorl.bench.data.steps import EATERS, Eater, worker_of
from emorl.bench.records import quantiles
from emorl.bench.suite import Options, Record
from emorl.bench.tables import Rows
from emorl.bench.turns import LEAST, MOST, warm_up
from emorl.data import ObjectDataset
from emorl.terminal import progress

WAYS = [Way(masks, workers) for masks in (False, True) for workers in WORKERS]
"""How a source is read."""
_SHORTEST, _LONGEST = 0.05, 1.0  # seconds of a timing of reading


def eaters_of(sources: Sequence[str]) -> list[Eater]:
    """What eats the images of these sources."""
    configs = dict.fromkeys(config for key in sources for config in SOURCES[key].eaten_by)
    return [Eater(config, model) for config in configs for model in EATERS]


def least_of(options: Options) -> int:
    """Timings that whatever has begun gets."""
    return LEAST if options.budget >= ENOUGH else 1


def outline(options: Options) -> Rows:
    """A row for each source and each training step."""
    rows = [["name", "what", "device", "batch", "read", "workers", "timings, at least"]]
    for key in options.models:
        workers = ", ".join(map(str, WORKERS))
        row = [key, SOURCES[key].title, options.device, str(options.batch)]
        rows.append([*row, "images; images and masks", workers, str(least_of(options))])
    for eater in eaters_of(options.models):
        batch = str(eater.batch(options.device))
        row = ["-", f"step of {eater}", options.device, batch]
        rows.append([*row, "-", "-", str(least_of(options))])
    return rows


class Run:
    """A run of the suite, which can be interrupted and keeps what it has.

    Sources and training steps have equal shares of the time that is left, and their least number of
    timings once they have begun; what finds no time is left out.

    Args:
        options: of the command line.
        write: is given the record whenever there is more of it.
    """

    def __init__(self, options: Options, write: Callable[[Record], object]) -> None:
        self._options, self._write = options, write
        self._header = {**records.header("data", options), "batch": options.batch}
        self._waiting: list[str | Eater] = [*options.models, *eaters_of(options.models)]
        self._entries: list[Record] = []
        self._steps: list[Record] = []
        self._left_out: list[str] = []
        self._failures: list[str] = []
        self._begin = time.perf_counter()

    def __call__(self) -> Record:
        """Run, and return the record."""
        try:
            with progress(total=len(self._waiting), leave=False) as bar:
                while self._waiting and self._left > 0:
                    item, share = self._waiting[0], self._left / len(self._waiting)
                    bar.set_postfix_str(str(item))
                    end = time.perf_counter() + share
                    if isinstance(item, Eater):
                        self._time_steps(item, end)
                    else:
                        self._read(item, end)
                    self._waiting.pop(0)
                    bar.update()
                    self._save(interrupted=True)  # as it would be, were the process killed
        except KeyboardInterrupt:
            return self._save(interrupted=True)
        return self._save(interrupted=False)

    @property
    def _left(self) -> float:
        """Seconds of the budget that are left."""
        return self._options.budget - (time.perf_counter() - self._begin)

    def _read(self, key: str, end: float) -> None:
        """Time a source in all its ways, which take turns, until the clock says `end`."""
        source, batch, device = SOURCES[key], self._options.batch, self._options.device
        parts = {way: {**way._asdict(), "images": [], "seconds": []} for way in WAYS}
        entry: Record = {"source": key, "parts": {str(way): part for way, part in parts.items()}}
        self._entries.append(entry)
        try:
            with _opened(key, source, device) as opened:
                entry["image_size"] = [*opened["cpu"].image_size]
                each = (end - time.perf_counter()) / (LEAST * len(parts))
                each = min(max(each / 2, _SHORTEST), _LONGEST)  # half is for starts and warm-ups
                rounds = 0
                while not self._is_enough(rounds, end):
                    rounds += 1
                    for way, part in parts.items():
                        images, seconds = timing(
                            opened["cpu" if way.workers else device],
                            way,
                            batch,
                            device,
                            each,
                        )
                        part["images"].append(images)
                        part["seconds"].append(seconds)
        except (ValueError, OSError, RuntimeError) as error:
            self._failures.append(f"{source.title}: {error}")

    def _is_enough(self, timings: int, end: float) -> bool:
        """Whether there are enough timings of what has its time until `end`."""
        return timings == MOST or (
            timings >= least_of(self._options) and time.perf_counter() >= end
        )

    def _time_steps(self, eater: Eater, end: float) -> None:
        """Time a training step until the clock says `end`."""
        seconds: list[float] = []
        batch = eater.batch(self._options.device)
        step = {**eater._asdict(), "batch": batch, "images": [], "seconds": seconds}
        self._steps.append(step)
        try:
            with worker_of(eater, self._options) as worker:
                for _ in range(warm_up(self._options.device)):
                    worker.step()
                while not self._is_enough(len(seconds), end):
                    seconds.append(worker.step()[0])
                    step["images"].append(batch)
        except (EOFError, ConnectionError):
            self._left_out.append(f"step of {eater}: its process died")

    def _save(self, interrupted: bool) -> Record:
        """Write the record of all that is there."""
        why = "interrupted" if interrupted else "no time"
        entries = [{**entry, "parts": _with_rates(entry["parts"])} for entry in self._entries]
        missing = [
            f"step of {item}" if isinstance(item, Eater) else SOURCES[item].title
            for item in self._waiting
        ]
        failures = [*self._failures]
        if not self._entries:
            failures.append("nothing was read")
        record = {
            **self._header,
            "interrupted": interrupted,
            "failures": failures,
            "left_out": [*self._left_out, *(f"{name}: {why}" for name in missing)],
            "steps": [*_with_rates({str(i): step for i, step in enumerate(self._steps)}).values()],
            "cases": [entry for entry in entries if entry["parts"]],
        }
        self._write(record)
        return record


@contextlib.contextmanager
def _opened(key: str, source: Source, device: str) -> Iterator[dict[str, ObjectDataset]]:
    """The data set of a source, on each device where images are made; a file is there meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        spec: str | Path = key
        if source.write:
            spec = Path(folder) / key
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of its own
                source.write(spec, source.images)
        yield {where: source.open(spec, where) for where in {"cpu", device}}


def _with_rates(parts: dict[str, Any]) -> dict[str, Any]:
    """Those that have timings, with quantiles of their images per second."""
    return {
        name: {
            **part,
            "images_per_second": quantiles(
                [n / s for n, s in zip(part["images"], part["seconds"], strict=True)]
            ),
        }
        for name, part in parts.items()
        if part["seconds"]
    }


def run(options: Options, write: Callable[[Record], object]) -> Record:
    """Run the suite; as `Run`."""
    return Run(options, write)()
