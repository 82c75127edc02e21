"""`emorl.bench` as an installed package has it: without a checkout, pytest and, in part, extras."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import OPTIONAL

ROOT = Path(__file__).resolve().parents[2]
MODULES = {path.stem for path in (ROOT / "emorl/bench").glob("[!_]*.py")} | {"cases"}
# Configurations and training steps need the extra "train".
NEED_EXTRA = {"against_released", "models", "rewritings", "step_kernels", "step_times", "steps"}
NEED_EXTRA |= {"suites", *(path.stem for path in (ROOT / "emorl/bench").glob("paper*.py"))}
IMPORT = """
import importlib, sys
blocked, names = sys.argv[1].split(), sys.argv[2:]
sys.modules.update(dict.fromkeys(blocked))
import emorl
assert not [name for name in sys.modules if name.startswith("emorl.bench")]
for name in names:
    importlib.import_module(f"emorl.bench.{name}")
"""


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [(MODULES - NEED_EXTRA, OPTIONAL), (NEED_EXTRA, set())],
    ids=["torch alone", "the extra train"],
)
def test_modules_are_imported_without(modules: set[str], blocked: set[str], tmp_path: Path) -> None:
    (tmp_path / "emorl").symlink_to(ROOT / "emorl")  # no benchmarks/, no tests/ beside it
    packages = " ".join(sorted({"pytest", "pytest_benchmark", *blocked}))
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, packages, *sorted(modules)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
