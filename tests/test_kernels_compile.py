"""GPU kernels become machine code for A100 and H100 on any machine; the summary lists them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CAPABILITIES = {80: 163 * 1024, 90: 227 * 1024}  # and the shared memory that a block can have
TRITON = sorted(x.stem for x in ROOT.glob("emorl/ops/triton/*.py") if "AOT =" in x.read_text())
CUDA = sorted(ROOT.glob("csrc/cuda/*.cu"))


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


def resources(log: str) -> list[tuple[str, str, int, int]]:
    """(kernel, architecture, bytes spilled, registers) of each kernel in ptxas's report."""
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    return [
        (name, architecture, int(stores) + int(loads), int(registers))
        for name, architecture, stores, loads, registers in pattern.findall(log)
    ]


def readable(names: list[str]) -> list[str]:
    """C++ names of kernels without their arguments."""
    if shutil.which("c++filt") is None:
        return names
    result = subprocess.run(
        ["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True
    )
    return result.stdout.split("\n")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
@pytest.mark.parametrize("source", CUDA, ids=lambda path: path.stem)
def test_nvcc_makes_machine_code_without_spills(
    source: Path, tmp_path: Path, compiled_kernels: list[str]
) -> None:
    command = ["nvcc", "-std=c++20", "-O3", "-DNDEBUG", "-c", str(source), "-I", str(ROOT / "csrc")]
    command += ["-Xptxas", "-v", "--threads", "2", "-o", str(tmp_path / "kernels.o")]
    for capability in CAPABILITIES:
        command += ["-gencode", f"arch=compute_{capability},code=sm_{capability}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    kernels = resources(result.stderr)
    assert {architecture for _, architecture, _, _ in kernels} == {f"sm_{c}" for c in CAPABILITIES}
    names = readable([name for name, *_ in kernels])
    for name, (_, architecture, spilled, registers) in zip(names, kernels, strict=False):
        line = f"cuda {name} {architecture}: {registers} registers, {spilled} bytes spilled"
        compiled_kernels.append(line)
        # double exists for checks against truth, not for speed
        assert spilled == 0 or "double" in name, line
