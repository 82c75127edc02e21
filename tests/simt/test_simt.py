"""The tests of the native operators, on CUDA kernels that run on the CPU (docs/simt.md)."""

from __future__ import annotations

import re
import time

import pytest
import simt_build
from simt_build import ROOT, Simulator

OPERATORS = sorted(path.stem for path in ROOT.glob("csrc/cuda/*.cu"))
OBSTACLE = simt_build.obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))


@pytest.fixture(scope="session")
def simulator(simt_lines: list[str]) -> Simulator:
    start = time.monotonic()
    built = Simulator(ROOT / "build" / "simt")
    built.build()
    simt_lines.append(f"compiled in {time.monotonic() - start:.0f} s")
    return built


@pytest.mark.parametrize("operator", OPERATORS)
def test_native_operator(operator: str, simulator: Simulator, simt_lines: list[str]) -> None:
    result = simulator.run_tests(f"test_{operator}")
    lines = result.stdout.splitlines()
    simt_lines.append(f"{operator}: {lines[-1].strip('= ')}" if lines else operator)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    launches = re.search(r"simt: (\d+) launches", result.stdout)
    assert launches is not None
    assert int(launches[1]) > 0
