"""Where tests lie, and that they are collected where optional packages are missing."""

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

# Tests of no one folder or module of the package.
CROSS_CUTTING = {
    *("build", "collection", "cuda_compile", "dependencies", "documentation", "examples"),
    *("gpu_script", "host_waits", "parity", "path_to_kernel", "private_names", "wrong_inputs"),
}


def test_tests_mirror_the_package() -> None:
    """In one level of folders: imports find what lies there, and ops/triton would be Triton."""
    tests, package = ROOT / "tests", ROOT / "emorl"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("*.py")}
    rooms = {path.parent.relative_to(package) for path in package.glob("*/__init__.py")}
    assert folders - rooms == {Path(), Path("simt"), Path("torture")}
    names = {path.stem.removeprefix("test_") for path in tests.glob("test_*.py")}
    assert names - {path.stem for path in package.glob("*.py")} == CROSS_CUTTING


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
