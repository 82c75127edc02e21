"""Triton's kernels become machine code for A100 and H100 anywhere; the summary lists them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CAPABILITIES = {80: 163 * 1024, 90: 227 * 1024}  # and the shared memory that a block can have
TRITON = sorted(x.stem for x in ROOT.glob("emorl/ops/triton/*.py") if "AOT =" in x.read_text())


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("operator", TRITON)
def test_triton_makes_cubins(operator: str, compiled_kernels: list[str]) -> None:
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tests/compile_triton.py"), operator]
    command += [str(capability) for capability in CAPABILITIES]
    environment["PYTHONPATH"] = str(ROOT)
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    pattern = re.compile(r"(\w+) sm_(\d+): cubin (\d+) bytes, shared memory (\d+)")
    lines = result.stdout.splitlines()
    assert lines
    for line in lines:
        _, capability, cubin, shared = pattern.match(line).groups()
        assert int(cubin) > 0, line
        assert int(shared) <= CAPABILITIES[int(capability)], line
    compiled_kernels += [f"triton {line}" for line in lines]
