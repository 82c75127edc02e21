"""Measuring one case of the paper's suite: its timings, its peaks, its largest batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from emorl.bench import largest, records
from emorl.bench.paper import cases as paper
from emorl.bench.paper.cases import OURS, RELEASED, Case
from emorl.bench.passes import BOTH, PARTS
from emorl.bench.suite import Options, Record
from emorl.bench.turns import ROUNDING, warm_up
from emorl.bench.workers import Worker


def header(options: Options) -> Record:
    """What the record says beside its results."""
    on_gpu = options.device == "cuda"
    return {
        **records.header("paper", options),
        "dtype": "float32",
        "batch": options.batch,
        "slots": paper.SLOTS,
        "memory_limit": options.memory,
        "peaks": "allocated in all" if on_gpu else "above the start of the process's first step",
        "largest_batch_by": largest.BISECTION if on_gpu else largest.LINE,
    }


def worker_of(case: Case, options: Options) -> Worker:
    """A process for a case; ours keeps its memory, as in training, the released code does not."""
    build = partial(paper.build, case, options.official, options.device)
    keep = case.code == OURS and options.device == "cpu"
    return Worker(build, options.threads, keep, _preload(options))


def survey_worker(options: Options) -> Worker:
    """A process that has no steps of its own, and is called."""
    return Worker(dict, options.threads, keep=False, preload=_preload(options))


def _preload(options: Options) -> str | None:
    """A process is forked where it can be: no fork can use a GPU safely."""
    return "emorl.bench.paper.cases" if options.device == "cpu" else None


def warmed_up(case: Case, worker: Worker, options: Options) -> Record:
    """Run the first steps of a case, and take down what is known then: first loss and peaks."""
    entry: Record = {**case._asdict(), "parts": {}}
    for part in PARTS:
        losses = [worker.step(part)[1] for _ in range(warm_up(options.device))]
        entry.setdefault("first_loss", losses[0])
        entry["parts"][part] = {"seconds": [], "peak_bytes": worker.peak()}
    return entry


def time_once(entry: Record, worker: Worker) -> None:
    """Add a timing of each part."""
    for part in PARTS:
        entry["parts"][part]["seconds"].append(worker.step(part)[0])


def largest_batch(case: Case, entry: Record, options: Options) -> Record:
    """The largest batch whose forward and backward pass is within the memory, in new processes."""
    peak = entry["parts"][BOTH]["peak_bytes"]
    if options.device == "cuda":
        build = partial(paper.build_batch, case, options.official, options.device)
        guess = max(1, options.memory * case.batch // peak)
        with survey_worker(options) as worker:
            search = partial(largest.on_gpu, build, BOTH, options.memory, guess)
            return {"images": worker.call(search)}
    peaks = {case.batch: peak}
    for batch in largest.others_than(case.batch):
        peaks[batch] = peak_of(case._replace(batch=batch), options)
    return {"images": largest.on_line(peaks, options.memory), "peaks_bytes": peaks}


def largest_of(entry: Record) -> int:
    """The largest batch of an entry; 0 where it is not known."""
    return int(entry.get("largest_batch", {}).get("images") or 0)


def peak_of(case: Case, options: Options) -> int:
    """Bytes that a case's parts need, in a new process."""
    with worker_of(case, options) as worker:
        for part in PARTS:
            worker.step(part)
        return worker.peak()


def free_memory() -> int:
    """Bytes of memory that programs can still have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def losses_that_differ(entries: Sequence[Record]) -> list[str]:
    """The cases whose first loss is not the released code's."""
    ours = {(e["model"], e["size"]): e["first_loss"] for e in entries if e["code"] == OURS}
    found = []
    for entry in [entry for entry in entries if entry["code"] == RELEASED]:
        mine, theirs = ours.get((entry["model"], entry["size"])), entry["first_loss"]
        if mine is not None and not abs(theirs - mine) <= ROUNDING * abs(mine):
            found.append(f"{entry['model']} at {entry['size']}: losses differ: {mine}, {theirs}")
    return found


def timings_of(entry: Record) -> int:
    """The timings that every part of an entry has."""
    return min((len(part["seconds"]) for part in entry.get("parts", {}).values()), default=0)
