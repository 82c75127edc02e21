"""`emorl.bench` as an installed package has it: without a checkout, pytest and, in part, extras."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import OPTIONAL

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "emorl/bench"
MODULES = {
    ".".join(path.relative_to(BENCH).with_suffix("").parts)
    for path in BENCH.rglob("*.py")
    if path.name != "__init__.py"
}
SUITES = {module for module in MODULES if "." in module and not module.startswith("cases.")}
# Configurations, training steps, progress bars and plots need the extra "train".
NEED_EXTRA = {"rewritings", "step_kernels"}
NEED_EXTRA |= {"figures", "page", "suites", "turns", *SUITES}
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
