"""Everything that the simulator can show, in minutes: `make test-simt-all`.

The native operators' tests in every order of threads with every number of multiprocessors; the bits
of all results over these; and mutations: each barrier of the kernels removed in turn must change a
result in some order. Writes the table of docs/simt.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simt_build import HERE, ROOT, Simulator
from simt_plugin import MULTIPROCESSORS, ORDERS

FOLDER = ROOT / "build" / "simt"
PAGE = ROOT / "docs" / "simt.md"
SYNCHRONISATION = re.compile(r"(?:__syncthreads|__syncwarp|__pipeline_\w+)\([^()]*\);")
NOTHING = "**nothing**"
BEGIN, END = "<!-- written by make test-simt-all -->\n", "<!-- end -->\n"
COPY = "__pipeline_memcpy_async"  # is no synchronisation
PROCESSORS = (1, 7)  # several tiles a block, and one or few


@dataclass(frozen=True)
class Mutation:
    """One statement of a kernel's source, to be removed."""

    path: Path
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def line(self) -> int:
        return self.text[: self.start].count("\n") + 1

    @property
    def statement(self) -> str:
        return self.text[self.start : self.end - 1]

    @property
    def operators(self) -> list[str]:
        """Whose kernels contain it."""
        found = [x for x in operators() if self.path.name.startswith(x)]
        return found or operators()

    def apply(self, root: Path) -> None:
        shutil.copytree(ROOT / "csrc", root / "csrc", dirs_exist_ok=True)
        changed = self.text[: self.start] + ";" + self.text[self.end :]
        (root / self.path.relative_to(ROOT)).write_text(changed)


def operators() -> list[str]:
    return sorted(path.stem for path in ROOT.glob("csrc/cuda/*.cu"))


def mutations() -> list[Mutation]:
    """All synchronisation of all kernels."""
    return [
        Mutation(path, match.start(), match.end())
        for path in sorted(ROOT.glob("csrc/cuda/*.cu*"))
        for match in SYNCHRONISATION.finditer(path.read_text())
        if not match[0].startswith(COPY)
    ]


def digests_of(simulator: Simulator, names: list[str], expected: Path | None = None) -> Any:
    """What simt_digests.py prints."""
    command = [sys.executable, str(HERE / "simt_digests.py"), ",".join(names)]
    command += [",".join(map(str, PROCESSORS)), *([str(expected)] if expected else [])]
    folders = [simulator.folder, HERE, ROOT / "tests", ROOT]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "EMORL_TEST_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if result.returncode:
        raise RuntimeError(result.stderr[-4000:])
    return json.loads(result.stdout)


def notice(number: int, mutation: Mutation, expected: Path) -> str:
    """In which orders a mutation is noticed, and how."""
    folder = FOLDER / "mutations" / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    mutation.apply(folder)
    simulator = Simulator(folder, folder)
    simulator.build()
    found = digests_of(simulator, mutation.operators, expected)
    shutil.rmtree(folder)
    refused = any(how.startswith("error") for how in found.values())
    how = "an error in" if refused else "other results in"
    return f"{how} {', '.join(found)} order" if found else NOTHING


@dataclass(frozen=True)
class Outcome:
    """Of all tests in one order with one number of multiprocessors."""

    passed: int
    failed: bool


def run_tests(order: str, processors: int) -> Outcome:
    environment = {
        "SIMT_ORDER": order,
        "SIMT_MULTIPROCESSORS": str(processors),
        "OMP_NUM_THREADS": "1",
    }
    names = [f"test_{name}" for name in (*operators(), "odd_cases")]
    result = Simulator(FOLDER).run_tests(*names, environment=environment)
    lines = result.stdout.splitlines()
    print(f"{order}, {processors} multiprocessors: {lines[-1] if lines else ''}", flush=True)
    if result.returncode:
        print(result.stdout[-8000:], result.stderr[-2000:], flush=True)
    passed = re.search(r"(\d+) passed", result.stdout)
    return Outcome(int(passed[1]) if passed else 0, result.returncode != 0)


def row(number: int, mutation: Mutation, expected: Path) -> str:
    """A line of the page's table."""
    how = notice(number, mutation, expected)
    line = f"| {mutation.path.name} | {mutation.line} | `{mutation.statement}` | {how} |"
    print(line, flush=True)
    return line


def write_page(summary: str, rows: list[str]) -> None:
    """Replace what the page says between its two marks."""
    head, rest = PAGE.read_text().split(BEGIN)
    titles = ["| source in csrc/cuda | line | removed | noticed by |", "|---|---|---|---|"]
    lines = [summary, "", *titles, *rows]
    PAGE.write_text(head + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1])


def main() -> int:
    start = time.monotonic()
    simulator = Simulator(FOLDER)
    simulator.build()
    cross = [(order, processors) for order in ORDERS for processors in MULTIPROCESSORS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(lambda x: run_tests(*x), cross))
        digests = digests_of(simulator, operators())
        expected = FOLDER / "digests.json"
        expected.write_text(json.dumps(digests))
        rows = list(pool.map(lambda x: row(*x, expected), enumerate(mutations())))
    same = all(x == orders["forward"] for orders in digests.values() for x in orders.values())
    missed = sum(NOTHING in x for x in rows)
    summary = (
        f"{min(x.passed for x in outcomes)} tests passed in each of {len(cross)} combinations of "
        f"order and multiprocessors; the results' bits were {'' if same else 'NOT '}the same in "
        f"every order. {len(rows) - missed} of {len(rows)} mutations were noticed. It took "
        f"{(time.monotonic() - start) / 60:.0f} minutes on {os.cpu_count()} cores."
    )
    print(summary)
    write_page(summary, rows)
    return int(any(x.failed for x in outcomes) or missed > 0 or not same)


if __name__ == "__main__":
    sys.exit(main())
