"""Tests can be collected, and those that need no optional package run, where such are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import OPTIONAL

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {"accelerate", "yaml", "tqdm", "hypothesis"}  # pytest's plugin, and what Accelerate needs
COLLECT = """
import sys
import pytest

sys.modules.update(dict.fromkeys(sys.argv[1:]))
options = ["--collect-only", "-qq", "-rs", "-p", "no:cacheprovider"]
sys.exit(pytest.main([*options, "tests", "benchmarks"]))
"""


def test_missing_packages_skip_files_and_stop_nothing():
    blocked = sorted(OPTIONAL - NEEDED)
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, *blocked], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]
    for file in ("tests/ops/test_slot_attention.py", "benchmarks/test_training_step.py"):
        assert f"\n{file}: " in f"\n{done.stdout}"
    for file, package in (("test_tfrecord", "google_crc32c"), ("test_hdf5", "h5py")):
        assert f"{file}.py: {package} is not installed" in done.stdout


def test_a_wrong_import_of_an_installed_package_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_wrong.py").write_text("from hypothesis import no_such_name\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stdout[-2000:]
    assert "cannot import name 'no_such_name'" in done.stdout
