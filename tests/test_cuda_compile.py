"""CMake compiles the CUDA part of the extension wherever nvcc is; the summary lists the kernels."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import build_testing
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
KERNELS = sorted(ROOT.glob("csrc/cuda/*.cu"))
BINDINGS = [x for x in sorted(ROOT.glob("csrc/*.cpp")) if '#include "device.h"' in x.read_text()]
SETUP = runpy.run_path(str(ROOT / "setup.py"), run_name="build")
GENERATED = "c10/cuda/impl/cuda_cmake_macros.h"  # the one header that torch for CPUs lacks


def configure(folder: Path) -> None:
    """CMake as setup.py calls it beside a torch with CUDA, whatever torch this is."""
    toolkit = build_testing.toolkit_version()
    stand_in = folder / "site" / "torch"
    if not stand_in.exists():
        include = Path(torch.__file__).parent / "include"
        build_testing.write_torch(stand_in.parent, cuda=toolkit, include=include)
        (folder / GENERATED).parent.mkdir(parents=True)
        (folder / GENERATED).touch()
    flags = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_COMPILER": build_testing.NVCC,
        "CMAKE_CUDA_FLAGS": "-Xptxas=-v",
        "CMAKE_CXX_FLAGS": f"-idirafter {folder}",
        "CMAKE_MAKE_PROGRAM": SETUP["find_tool"]("ninja"),
        "EMORL_CUDA": "ON",
        "EMORL_TORCH": stand_in,
        "EMORL_TORCH_CUDA": toolkit,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": SETUP["find_pybind11"](),
    }
    definitions = [f"-D{name}={value}" for name, value in flags.items()]
    cmake = SETUP["find_tool"]("cmake")
    SETUP["run"]("configuring", cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *definitions)


def compile_sources(folder: Path, sources: list[Path]) -> dict[Path, str]:
    """What the compilers said about each source, now or when they last compiled it."""
    objects = {source: f"CMakeFiles/_C.dir/{source.relative_to(ROOT)}.o" for source in sources}
    for name in objects.values():
        if not (folder / f"{name}.txt").exists():
            (folder / name).unlink(missing_ok=True)
    command = [SETUP["find_tool"]("cmake"), "--build", str(folder), "--target", *objects.values()]
    result = subprocess.run(command, capture_output=True, text=True)
    steps = r"^\[\d+/\d+\] Building \w+ object (\S+)\n((?:(?!\[\d+/\d+\]).*\n)*)"
    for name, said in re.findall(steps, result.stdout, re.MULTILINE):
        (folder / f"{name}.txt").write_text(said)
    assert result.returncode == 0, result.stdout[-4000:]
    return {source: (folder / f"{name}.txt").read_text() for source, name in objects.items()}


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


def is_for_double(name: str) -> bool:
    """Whether a kernel's mangled name says so: `Id`, its first template argument is double."""
    return "kernelId" in name


def readable(names: list[str]) -> list[str]:
    """C++ names of kernels without their arguments; mangled ones where c++filt is missing."""
    if shutil.which("c++filt") is None:
        return names
    result = subprocess.run(
        ["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True
    )
    return result.stdout.splitlines()


@pytest.mark.skipif(build_testing.NVCC is None, reason="nvcc is not on the PATH")
def test_cuda_part_compiles_and_no_kernel_spills(
    record_property: Callable[[str, object], None],
) -> None:
    folder = ROOT / "build" / f"cuda-test-{torch.__version__}"  # objects for the next time
    configure(folder)
    reports = compile_sources(folder, [*KERNELS, *BINDINGS])
    for source in KERNELS:
        assert "warning" not in reports[source], reports[source]
        kernels = resources(reports[source])
        assert {architecture for _, architecture, _, _ in kernels} == {"sm_80", "sm_90"}
        names = readable([name for name, *_ in kernels])
        for name, (mangled, architecture, spilled, registers) in zip(names, kernels, strict=True):
            line = f"cuda {name} {architecture}: {registers} registers, {spilled} bytes spilled"
            record_property("compiled", line)
            # double exists for checks against truth, not for speed
            assert spilled == 0 or is_for_double(mangled), line
