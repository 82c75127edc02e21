"""The numerical tests on stand-ins for other processors; prints a table in Markdown.

    python tests/machines.py [--rows N ...] [pytest's arguments]

A stand-in builds our own extension for other vectors, or restricts what torch's libraries may use
of this processor: ATen's vectors, oneDNN's and MKL's instructions, threads. The rows are chosen so
that each pair of settings occurs in one of them (a Latin square); the last one has no extension,
since ATen's plainest kernels refuse it. What a row names was asked of the libraries themselves.
Copies of the package are built in build/machines. Ends with 1 if a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIES = ROOT / "build" / "machines"
FOLDERS = ["emorl", "csrc", "tests", "benchmarks"]
FILES = ["setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"]
# Operators, models against references, recorded numbers, training, several processes.
TESTS = (
    "ops nn models compat evaluation bench/test_rewritings.py test_parity.py "
    "training/test_trainer.py training/test_optimizers.py training/test_precision.py "
    "training/test_several_processes.py"
)
COLUMNS = "row extension ATen oneDNN MKL threads passed failed skipped seconds"
EXTENSIONS = ["AVX512", "AVX2"]
ATEN = ["avx512", "avx2", "default"]
ONEDNN = [None, "AVX2", "SSE41"]  # None: all that the processor has
MKL = [None, "AVX2", "SSE4_2"]
THREADS = [2, 1, 3]

# The libraries tell what they use where they compute something large enough.
PROBE = """
import json
import torch
from emorl.ops import extension
torch.nn.functional.conv2d(torch.ones(8, 16, 32, 32), torch.ones(16, 16, 3, 3))
torch.ones(64, 64) @ torch.ones(64, 64)
aten = torch.backends.cpu.get_cpu_capability()
print("PROBE", json.dumps([extension._load_obstacle(), aten, torch.get_num_threads()]))
"""


class Machine(NamedTuple):
    """What a row asks for."""

    extension: str
    aten: str
    onednn: str | None = None
    mkl: str | None = None
    threads: int = THREADS[0]

    def environment(self) -> dict[str, str]:
        copy = COPIES / self.extension
        settings = {
            "PYTHONPATH": str(copy),
            "ATEN_CPU_CAPABILITY": self.aten,
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "MKL_ENABLE_INSTRUCTIONS": self.mkl,
            "OMP_NUM_THREADS": str(self.threads),
        }
        fixtures = {"EMORL_FIXTURES": str(ROOT.parent / "shared")}
        return fixtures | {**os.environ} | {k: v for k, v in settings.items() if v is not None}


class Found(NamedTuple):
    """What the libraries use: a row of the table, and why the extension is refused, if it is."""

    obstacle: str | None
    aten: str
    onednn: str
    mkl: str
    threads: int


def build(extension: str) -> None:
    """A copy of the package whose extension is built for these vectors, with the CPU's alone."""
    copy = COPIES / extension
    copy.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        shutil.rmtree(copy / folder, ignore_errors=True)
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("_C*.so"))
    for file in FILES:
        shutil.copy(ROOT / file, copy)
    environment = {**os.environ, "EMORL_CPU": extension, "EMORL_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    with (COPIES / f"{extension}.log").open("w") as log:
        subprocess.run(command, cwd=copy, env=environment, stdout=log, stderr=log, check=True)


def probe(machine: Machine) -> Found:
    """Ask the libraries."""
    environment = machine.environment() | {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    command = [sys.executable, "-c", PROBE]
    output = subprocess.run(
        command, cwd=COPIES, env=environment, capture_output=True, text=True, check=True
    ).stdout
    onednn = re.search(r"cpu,isa:(?:Intel )?(.+?)(?: with | and |\n)", output)
    mkl = re.search(r"MKL_VERBOSE .*?\((?:Intel\(R\) )?(AVX-512|AVX2|SSE4\.2)\)", output)
    obstacle, aten, threads = json.loads(output.split("PROBE ", 1)[1].splitlines()[0])
    names = (match[1] if match else "unknown" for match in (onednn, mkl))
    return Found(obstacle, aten, *names, threads)


def plan() -> tuple[list[Machine], list[str]]:
    """The rows, and for each combination that is left out the reason."""
    usable, left_out = [], []
    for extension in EXTENSIONS:
        for aten in ATEN:
            found = probe(Machine(extension, aten))
            if found.aten != aten.upper():
                reason = f"this processor has {found.aten} alone"
            elif found.obstacle:
                reason = found.obstacle
            else:
                usable.append((extension, aten))
                continue
            left_out.append(f"extension {extension}, ATen {aten}: {reason}")
    rows = [
        Machine(*kernels, ONEDNN[j], MKL[(i + j) % 3], THREADS[(i + 2 * j) % 3])
        for i, kernels in enumerate(usable)
        for j in range(3)
    ]
    return [*rows, Machine("AVX2", "default", "AVX2", "AVX2")], left_out


def test(machine: Machine, arguments: list[str]) -> tuple[dict[str, int], list[str]]:
    """Counts of passed, failed and skipped tests, and the names of the failed ones."""
    copy, report = COPIES / machine.extension, COPIES / "report.xml"
    report.unlink(missing_ok=True)
    # The Triton kernels' interpreter is slow, and computes with numpy.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not triton"]
    command += [f"--junitxml={report}", *arguments, *(f"tests/{name}" for name in TESTS.split())]
    with (COPIES / "pytest.log").open("a") as log:
        log.write(f"\n{machine}\n")
        log.flush()
        subprocess.run(command, cwd=copy, env=machine.environment(), stdout=log, stderr=log)
    if not report.exists():
        raise SystemExit(f"pytest ended without a report; see {COPIES / 'pytest.log'}")
    return count(report)


def count(report: Path) -> tuple[dict[str, int], list[str]]:
    counts, failed = {"passed": 0, "failed": 0, "skipped": 0}, []
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            counts["failed"] += 1
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        else:
            counts["skipped" if "skipped" in kinds else "passed"] += 1
    return counts, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of the rows, all by default")
    options, arguments = parser.parse_known_args()
    for extension in EXTENSIONS:
        build(extension)
    machines, left_out = plan()
    (COPIES / "pytest.log").unlink(missing_ok=True)
    columns = COLUMNS.split()
    print("|" + "|".join(columns) + "|\n|" + "---|" * len(columns), flush=True)
    failures = []
    for number in options.rows or range(1, len(machines) + 1):
        machine = machines[number - 1]
        found, start = probe(machine), time.monotonic()
        counts, failed = test(machine, arguments)
        extension = "none" if found.obstacle else machine.extension
        seconds = round(time.monotonic() - start)
        row = (number, extension, *found[1:], *counts.values(), seconds)
        print("|" + "|".join(str(x) for x in row) + "|", flush=True)
        failures += [f"row {number}: {name}" for name in failed]
    print("\nLeft out:", *(f"- {reason}" for reason in left_out), sep="\n")
    if failures:
        print("\nFailed:", *(f"- {name}" for name in failures), sep="\n")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
