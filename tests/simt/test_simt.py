"""The tests of the native operators, on CUDA kernels that run on the CPU (docs/simt.md)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import simt_build
from simt_build import ROOT, Simulator

OPERATORS = sorted(path.stem for path in ROOT.glob("csrc/cuda/*.cu"))
OBSTACLE = simt_build.obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))


def chosen(operator: str) -> Any:
    """An operator's test; those of two take twice the time of the others."""
    slow = operator in ("convolution", "spatial_broadcast")
    return pytest.param(operator, marks=pytest.mark.slow if slow else ())


@pytest.fixture(scope="session")
def simulator() -> Simulator:
    built = Simulator(ROOT / "build" / "simt")
    built.build()
    return built


@pytest.mark.parametrize("tests", [*map(chosen, OPERATORS), "odd_cases", "not_finite"])
def test_native_operators(
    tests: str, simulator: Simulator, record_property: Callable[[str, object], None]
) -> None:
    result = simulator.run_tests(f"test_{tests}")
    lines = result.stdout.splitlines()
    record_property("simulated", f"{tests}: {lines[-1].strip('= ')}" if lines else tests)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    launches = re.search(r"simt: (\d+) launches", result.stdout)
    assert launches is not None
    assert int(launches[1]) > 0
