"""Compile all Triton kernels for A100 and H100 without a GPU, and print what became of them.

    python tests/ops/aot.py [folder with another Triton] ...

One table row for each operator, dtype, architecture and version of Triton: cases compiled and
refused, and the most shared memory that a kernel takes. `make test-aot` runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted(ROOT.glob("emorl/ops/triton/*_kernels.py"))
OPERATORS = [path.stem.removesuffix("_kernels") for path in KERNELS]
HEADER = "| operator | dtype | architecture | Triton | compiled | refused | shared memory, bytes |"


def compile_cases(operator: str, cases: str, triton: Path | None = None) -> list[dict[str, Any]]:
    """The records of `compile_triton.py`, with the installed Triton or the one in a folder."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(x) for x in (triton, ROOT) if x)
    command = [sys.executable, str(ROOT / "tests/ops/compile_triton.py"), operator, cases]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[-4000:]}")
    return [json.loads(line) for line in result.stdout.splitlines()]


def table(records: list[dict[str, Any]]) -> list[str]:
    """A row for each operator, dtype, architecture and version of Triton, in order."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        architecture = f"{record['capability'] / 10}"
        key = (record["operator"], record["dtype"], architecture, record["triton"])
        groups.setdefault(key, []).append(record)
    rows = []
    for key, group in groups.items():
        cases = {(x["kind"], *x["size"]): "refused" in x for x in group}
        refused, largest = sum(cases.values()), max(x.get("shared", 0) for x in group)
        numbers = (len(cases) - refused, refused, f"{largest:,}")
        rows.append(f"| {' | '.join((*key, *map(str, numbers)))} |")
    return rows


def main(folders: list[str]) -> int:
    """Print the table and each failure; 1 if there was one."""
    records: list[dict[str, Any]] = []
    start = time.monotonic()
    for folder in (None, *map(Path, folders)):
        for operator in OPERATORS:
            records += compile_cases(operator, "grid", folder)
    print("\n".join((HEADER, "| --- " * HEADER.count(" | ") + "| --- |", *table(records))))
    failures = [record for record in records if "failed" in record]
    print(f"{len(records)} kernels and refusals in {time.monotonic() - start:.0f} s")
    for failure in failures:
        print(f"failed: {json.dumps(failure)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
