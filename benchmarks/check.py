"""Is the working tree slower than a git reference? `make bench-check REF=main` fails if it is.

Training steps of all models and the operators run in two processes, one for each tree, which take
turns: each pair gives ratios of time, of the processors' time, and of instructions where `perf` can
count them, so that what else the machine does touches both. A case is slower if one median ratio is
above 1.05 and the lower end of its 95 % bootstrap interval above 1, twice: what looks slower is
measured again in new processes, since two processes of the same code differ by a few per cent as
long as they live. The reference has a worktree and a build of its own, for as long as this runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from benchmarks.check_steps import CASES
from emorl.bench import kernels
from emorl.bench.tables import Rows, as_text

ROOT = Path(__file__).resolve().parents[1]
STEPS = ROOT / "benchmarks/check_steps.py"
NATIVE = ("csrc", "CMakeLists.txt", "setup.py")
BEYOND = 1.05  # a median ratio from which on a case counts as slower
LEAST, MOST, COUNTED = 7, 25, 3  # pairs of timings, and of instruction counts
SHORTEST = 0.05  # seconds of a timing, by as many steps as that takes
EVENT = "instructions:u"
TIME, CPU_TIME, INSTRUCTIONS = "time", "processors' time", "instructions"


Amounts = dict[str, float]  # of time and the like


class Side(Protocol):
    """One tree's process."""

    def times(self, case: str, steps: int) -> Amounts:
        """Seconds that so many steps of a case took."""

    def instructions(self, case: str, steps: int) -> Amounts:
        """How many instructions they were."""


class Ratios(NamedTuple):
    """Ratios of the working tree to the reference: the median and its 95 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Self:
        """By the bootstrap: medians of 2,000 samples of the ratios, always the same samples."""
        drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
        low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975]).tolist()
        return cls(float(np.median(ratios)), low, high)

    @property
    def slower(self) -> bool:
        """Whether that is more than noise and more than is tolerated."""
        return self.median > BEYOND and self.low > 1

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


class Measured(NamedTuple):
    """A case of both trees: seconds of one step, and the ratios of what was measured."""

    seconds: float
    ratios: dict[str, Ratios]

    @property
    def slower(self) -> bool:
        """Whether it is, by any of them."""
        return any(ratios.slower for ratios in self.ratios.values())


@dataclass
class Process:
    """A process that imports a tree's emorl and obeys `check_steps`."""

    tree: Path
    _process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Self:
        environment = {**os.environ, "PYTHONPATH": str(self.tree), "OMP_WAIT_POLICY": "passive"}
        self._process = subprocess.Popen(
            [sys.executable, str(STEPS)],
            cwd=self.tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def times(self, case: str, steps: int) -> Amounts:
        """Seconds that so many steps of a case took, by the clock and of the processors.

        Raises:
            LookupError: if the tree cannot run it.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{case} {steps}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip() or "error: the process died"
        if answer.startswith("error"):
            raise LookupError(answer)
        return dict(zip((TIME, CPU_TIME), map(float, answer.split()), strict=True))

    def instructions(self, case: str, steps: int) -> Amounts:
        """How many instructions they were, by `perf`, in all threads.

        Raises:
            LookupError: if the tree cannot run it.
            ValueError: if `perf` gives no number.
        """
        with _perf(self._process.pid) as said:
            self.times(case, steps)
        return {INSTRUCTIONS: counted(said[0])}


@contextmanager
def _perf(process: int) -> Iterator[list[str]]:
    """Count in a process as long as the context lasts; then what `perf` said is in the list."""
    commands, control = os.pipe()
    acknowledged, acknowledge = os.pipe()
    options = ["--delay=-1", f"--control=fd:{commands},{acknowledge}", "-p", str(process)]
    with subprocess.Popen(
        ["perf", "stat", "-x,", "-e", EVENT, *options],
        pass_fds=(commands, acknowledge),
        stderr=subprocess.PIPE,
        text=True,
    ) as perf:
        for end in (commands, acknowledge):
            os.close(end)
        said: list[str] = []
        try:
            os.write(control, b"enable\n")
            os.read(acknowledged, 16)
            yield said
            os.write(control, b"disable\n")
            os.read(acknowledged, 16)
        finally:
            perf.send_signal(signal.SIGINT)
            said.append(perf.communicate()[1])
            for end in (control, acknowledged):
                os.close(end)


def counted(said: str) -> float:
    """The number in the output of `perf stat -x,`.

    Raises:
        ValueError: if there is none, as where a machine does not let its counters be read.
    """
    numbers = [line.split(",")[0] for line in said.splitlines() if f",{EVENT}," in line]
    if not numbers or not numbers[0].isdigit():
        raise ValueError(f"perf: expected a number of {EVENT}, got {' '.join(said.split())}")
    return float(numbers[0])


def can_count() -> bool:
    """Whether `perf` is there and counts instructions."""
    if shutil.which("perf") is None:
        return False
    probe = ["perf", "stat", "-x,", "-e", EVENT, "true"]
    try:
        counted(subprocess.run(probe, capture_output=True, text=True).stderr)
    except ValueError:
        return False
    return True


def in_turns(
    reference: Callable[[], Amounts], tree: Callable[[], Amounts], go_on: Callable[[int], bool]
) -> dict[str, Ratios]:
    """Ratios of the second to the first, which take turns in being first."""
    pairs: list[tuple[Amounts, Amounts]] = []
    while go_on(len(pairs)):
        if len(pairs) % 2:
            over, under = tree(), reference()
        else:
            under, over = reference(), tree()
        pairs.append((under, over))
    return {name: Ratios.of([over[name] / under[name] for under, over in pairs]) for name in over}


def measure(case: str, reference: Side, tree: Side, until: float, counts: bool) -> Measured:
    """Measure a case in turns.

    Args:
        case: its name.
        reference: the process of the git reference.
        tree: that of the working tree.
        until: when to stop, by `time.monotonic`; `LEAST` pairs come first.
        counts: whether instructions are counted as well.

    Raises:
        LookupError: if a tree cannot run it.
    """
    once = min(side.times(case, 1)[TIME] for side in (reference, tree))
    steps = 1 + int(SHORTEST / once)
    ratios = in_turns(
        lambda: reference.times(case, steps),
        lambda: tree.times(case, steps),
        lambda done: done < LEAST or (done < MOST and time.monotonic() < until),
    )
    if counts:
        ratios |= in_turns(
            lambda: reference.instructions(case, steps),
            lambda: tree.instructions(case, steps),
            lambda done: done < COUNTED,
        )
    return Measured(once, ratios)


def measure_all(
    cases: Sequence[str], sides: Callable[[], tuple[Any, Any]], seconds: float, counts: bool
) -> tuple[dict[str, Measured], list[str]]:
    """Measure cases in two new processes, each for its share of the time.

    Args:
        cases: their names.
        sides: contexts of the reference's and the tree's process.
        seconds: for all.
        counts: as in `measure`.

    Returns:
        What was measured, and a line for each case that a tree cannot run.
    """
    measured, left_out = {}, []
    begin = time.monotonic()
    with ExitStack() as stack:
        reference, tree = (stack.enter_context(side) for side in sides())
        for number, case in enumerate(cases, 1):
            until = begin + seconds * number / len(cases)
            try:
                measured[case] = measure(case, reference, tree, until, counts)
            except LookupError as error:
                left_out.append(f"{case}: {error}")
    return measured, left_out


def compare(
    cases: Sequence[str], sides: Callable[[], tuple[Any, Any]], seconds: float, counts: bool
) -> tuple[dict[str, Measured], list[str]]:
    """Measure cases, and once more those that look slower; the second time counts.

    As `measure_all`.
    """
    half = seconds / 2
    measured, left_out = measure_all(cases, sides, half, counts)
    suspects = [case for case, found in measured.items() if found.slower]
    if suspects:
        share = half * len(suspects) / len(cases)
        again, died = measure_all(suspects, sides, share, counts)
        measured, left_out = {**measured, **again}, left_out + died
    return measured, left_out


def table(measured: dict[str, Measured]) -> Rows:
    """A row for each case."""
    names = (TIME, CPU_TIME, INSTRUCTIONS)
    rows = [["case", "reference, ms", *(f"{name}, tree / reference" for name in names), ""]]
    for case, found in measured.items():
        ratios = [str(found.ratios.get(name, "-")) for name in names]
        verdict = "SLOWER" if found.slower else ""
        rows.append([case, f"{1e3 * found.seconds:.1f}", *ratios, verdict])
    return rows


@contextmanager
def worktree(reference: str) -> Iterator[Path]:
    """A built worktree of a git reference.

    Raises:
        ValueError: if there is no such reference.
    """
    known = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{reference}^{{commit}}"]
    if (found := _git(*known)).returncode:
        raise ValueError(f"REF: expected a git reference, got {reference!r}")
    commit = found.stdout.strip()
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-check-", dir=ROOT / "build") as folder:
        tree = Path(folder) / "reference"
        _git("worktree", "add", "--detach", str(tree), commit).check_returncode()
        try:
            _build(tree, commit)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _build(tree: Path, commit: str) -> None:
    """Build the extension of a worktree, or copy ours if its sources are the same."""
    own = [*(ROOT / "emorl").glob("_C*.so"), ROOT / "emorl/_build.json"]
    new = _git("ls-files", "--others", "--exclude-standard", "--", *NATIVE).stdout
    changed = new or _git("diff", "--quiet", commit, "--", *NATIVE).returncode
    if changed or not all(file.is_file() for file in own):
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL)
        return
    for file in own:
        shutil.copy2(file, tree / "emorl")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)


def main() -> int:
    """Measure and print; 1 if a case is slower."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ref", default="main", help="git reference to compare with")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--seconds", type=float, default=180, help="of measuring, about")
    options = parser.parse_args()
    counts = can_count()
    try:
        kernels.require(allowed=False, device="cpu")
        with worktree(options.ref) as reference:

            def sides() -> tuple[Process, Process]:
                return Process(reference), Process(ROOT)

            measured, left_out = compare(options.cases, sides, options.seconds, counts)
    except ValueError as error:
        parser.error(str(error))
    print(as_text(table(measured)))
    for line in left_out:
        print(f"left out: {line}")
    if not counts:
        print("instructions: no perf that can count them")
    return int(any(found.slower for found in measured.values()))


if __name__ == "__main__":
    sys.exit(main())
