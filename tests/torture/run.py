"""The torture suite, all of it or a part, with counts as JSON: `make torture`.

Killed and started again it goes on, since a case depends on part, seed and number alone:
`--part kills --seed 0 --only 17` runs one that is in the record again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import torture_containers  # noqa: E402
import torture_files  # noqa: E402
import torture_runs  # noqa: E402
from torture_children import Fault  # noqa: E402

from emorl.bench.records import machine, write  # noqa: E402

Case = Callable[[random.Random, Path], "Counter[str]"]
Cases = Iterator[tuple[int, "Counter[str]", str]]
OPERATORS = ("slot_attention", "mixture_nll", "spatial_broadcast", "convolution", "slot_iterations")
SAVE_EVERY = 10.0  # seconds


def in_turn(case: Case, seed: int, first: int, cases: int) -> Cases:
    """Run cases one after the other, each in a folder of its own."""
    for index in range(first, cases):
        with tempfile.TemporaryDirectory() as folder:
            try:
                rng = random.Random(f"{case.__name__} {seed} {index}")
                yield index, case(rng, Path(folder)), ""
            except Fault as fault:
                yield index, Counter(wrong=1), str(fault)[:600]


def operators(seed: int, first: int, cases: int) -> Cases:
    """Each operator and backend against float64, by tests/ops/random_cases.py; `cases` of each."""
    pairs = [(op, backend) for op in OPERATORS for backend in ("native", "reference")]
    for index, (op, backend) in [*enumerate(pairs)][first:]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "counts.json"
            command = [sys.executable, str(HERE.parent / "ops" / "random_cases.py"), "--op", op]
            command += ["--backend", backend, "--cases", str(cases), "--seed", str(seed)]
            subprocess.run([*command, "--out", str(out)], check=False)
            found = json.loads(out.read_text())
        wrong = json.dumps(found["wrong"]) if found["wrong"] else ""
        yield index, Counter({f"{op}, {backend}": found["done"]}), wrong


PARTS: dict[str, tuple[int, Callable[[int, int, int], Cases]]] = {
    "kills": (200, partial(in_turn, torture_runs.kills)),
    "signals": (100, partial(in_turn, torture_runs.signals)),
    "full_disks": (60, partial(in_turn, torture_runs.full_disks)),
    "pairs": (60, partial(in_turn, torture_runs.pairs)),
    "two_processes": (20, partial(in_turn, torture_runs.two_processes)),
    "files": (10_000, torture_files.mutated_files),
    "containers": (
        torture_containers.VARIANTS * len(torture_containers.containers()),
        torture_containers.damaged,
    ),
    "own_images": (
        torture_containers.VARIANTS * len(torture_containers.own_images()),
        torture_containers.damaged_own_images,
    ),
    "operators": (5_000, operators),
}
"""Name -> number of cases in `make torture`, and what runs them."""


def torture(part: str, cases: int, seed: int, out: Path) -> dict[str, Any]:
    """Run a part from where the record `out` says that it stopped.

    Returns:
        The part's record: `done`, `counts` of what happened, and what was `wrong`, with the case.
    """
    record = json.loads(out.read_text()) if out.exists() else {"machine": describe(), "parts": {}}
    found = record["parts"].get(part)
    if found is None or found["seed"] != seed:
        found = {"seed": seed, "done": 0, "seconds": 0, "counts": {}, "wrong": []}
    counts, before, saved = Counter(found["counts"]), found["seconds"], time.monotonic()
    begin = saved
    print(f"{part}: seed {seed}, cases {found['done']} to {cases}", flush=True)
    for index, happened, wrong in PARTS[part][1](seed, found["done"], cases):
        counts += happened
        if wrong:
            found["wrong"].append({"case": index, "fault": wrong})
            print(f"{part}: seed {seed}, case {index}: {wrong}", flush=True)
        seconds = round(before + time.monotonic() - begin)
        found |= {"done": index + 1, "seconds": seconds, "counts": dict(sorted(counts.items()))}
        record["parts"][part] = found
        if time.monotonic() - saved > SAVE_EVERY:
            write(out, record)
            saved = time.monotonic()
    write(out, record)
    print(f"{part}: {found['done']} cases, {len(found['wrong'])} wrong: {found['counts']}")
    return found


def describe() -> dict[str, Any]:
    """The machine, with the kind of its processor where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return machine(threads=1) | ({"processor": model[1]} if model else {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="all by default")
    parser.add_argument("--cases", type=int, help="instead of the part's number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run one case, and print what happened")
    parser.add_argument("--out", type=Path, default=Path("torture.json"))
    options = parser.parse_args()
    parts = [options.part] if options.part else [*PARTS]
    if options.only is not None:
        cases = PARTS[parts[0]][1]
        print(next(cases(options.seed, options.only, options.only + 1)))
        return 0
    found = [torture(p, options.cases or PARTS[p][0], options.seed, options.out) for p in parts]
    return int(any(part["wrong"] for part in found))


if __name__ == "__main__":
    sys.exit(main())
