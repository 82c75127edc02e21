"""Builds the native extension: the environment becomes CMake flags, CMake and Ninja do the rest.

EMORL_CUDA=auto (default), 0 or 1 decides about CUDA; EMORL_CPU=auto (default: what this machine
has), AVX2 or AVX512 about the vectors of the CPU kernels on x86-64; EMORL_SANITIZE=1 is for
`make sanitize`.
Where there is no torch or no compiler, the package installs without the extension; `emorl info`
then says why.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CPUINFO = Path("/proc/cpuinfo")
RECORD = "_build.json"  # beside the extension: what it was built for, or why it is missing


class CannotBuildError(Exception):
    """The extension cannot be built here, for the reason given."""


def find_torch() -> Path:
    """Folder of the torch that emorl will run with.

    pip's build isolation hides the environment's packages by PYTHONPATH, so a clean interpreter
    is asked when this one sees no torch. Nothing imports torch: that takes seconds.
    """
    if spec := find_spec("torch"):
        return Path(spec.origin).parent
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    query = (
        "from importlib.util import find_spec as f; s = f('torch'); print(s.origin if s else '')"
    )
    command = [sys.executable, "-c", query]
    origin = subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()
    if not origin:
        raise CannotBuildError(f"no torch in {sys.prefix}: install torch first, then emorl again")
    return Path(origin).parent


def find_tool(name: str) -> str:
    """Path of a program, from this Python's environment or the PATH."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if path := shutil.which(name, path=folders):
        return path
    raise CannotBuildError(f"{name} not found: pip install cmake ninja pybind11")


def find_pybind11() -> str:
    spec = find_spec("pybind11")
    if spec is None:
        raise CannotBuildError("pybind11 not found: pip install cmake ninja pybind11")
    return str(Path(spec.origin).parent / "share/cmake/pybind11")


def find_nvcc() -> str | None:
    """CUDA's compiler: in CUDA_HOME, on the PATH, or in the usual place."""
    if home := os.environ.get("CUDA_HOME"):
        return shutil.which("nvcc", path=f"{home}/bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def decide_cuda(torch_cuda: str | None) -> tuple[str | None, str]:
    """CUDA's compiler, or None to build without CUDA; and why."""
    choice = os.environ.get("EMORL_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"EMORL_CUDA: expected auto, 0 or 1, got {choice!r}")
    if choice == "0":
        return None, "EMORL_CUDA=0"
    if torch_cuda is None:
        obstacle = "this torch is built without CUDA"
    elif nvcc := find_nvcc():
        return nvcc, f"torch is built for CUDA {torch_cuda}"
    else:
        obstacle = "no CUDA toolkit found (set CUDA_HOME)"
    if choice == "1":
        raise SystemExit(f"EMORL_CUDA=1, but {obstacle}")
    return None, obstacle


def decide_cpu() -> str:
    """Instruction set of the CPU kernels, in ATen's words."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "DEFAULT"
    choice = os.environ.get("EMORL_CPU", "auto")
    if choice not in ("auto", "AVX2", "AVX512"):
        raise SystemExit(f"EMORL_CPU: expected auto, AVX2 or AVX512, got {choice!r}")
    if choice != "auto":
        return choice
    described = CPUINFO.read_text() if CPUINFO.exists() else ""
    found = {
        word for line in described.splitlines() if line[:5] == "flags" for word in line.split()
    }
    return "AVX512" if found >= {"avx512f", "avx512bw", "avx512dq", "avx512vl"} else "AVX2"


class CMakeBuild(build_ext):
    def build_extension(self, extension: Extension) -> None:
        library = Path(self.get_ext_fullpath(extension.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            record = self.compile(library)
        except CannotBuildError as reason:
            library.unlink(missing_ok=True)
            record = {"native": False, "reason": str(reason)}
            print(f"emorl: installing WITHOUT the native extension: {reason}", flush=True)
        (library.parent / RECORD).write_text(json.dumps(record, indent=2) + "\n")

    def compile(self, library: Path) -> dict[str, object]:
        torch = find_torch()
        version = runpy.run_path(str(torch / "version.py"))
        nvcc, reason = decide_cuda(version["cuda"])
        print(f"emorl: CUDA {'on' if nvcc else 'off'}: {reason}", flush=True)
        cpu = decide_cpu()
        cmake, folder = find_tool("cmake"), str(ROOT / "build" / "native")
        flags = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": library.parent,
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "EMORL_CAPABILITY": cpu,
            "EMORL_CUDA": "ON" if nvcc else "OFF",
            "EMORL_MODULE_FILE": library.name,
            "EMORL_SANITIZE": "ON" if os.environ.get("EMORL_SANITIZE") == "1" else "OFF",
            "EMORL_TORCH": torch,
            "EMORL_TORCH_VERSION": version["__version__"],
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": find_pybind11(),
        }
        if nvcc:
            flags["CMAKE_CUDA_COMPILER"] = nvcc
        definitions = [f"-D{name}={value}" for name, value in flags.items()]
        configure = [cmake, "-S", str(ROOT), "-B", folder, "-G", "Ninja", *definitions]
        if subprocess.run(configure).returncode:
            shutil.rmtree(folder)  # a later try must look for the compiler anew
            raise CannotBuildError(
                "cmake could not configure: is a C++20 compiler (g++ >= 11) installed?"
            )
        subprocess.run([cmake, "--build", folder], check=True)
        torch_version = str(version["__version__"])
        return {"native": True, "torch": torch_version, "cpu": cpu, "cuda": reason}

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        shutil.copyfile(Path(self.build_lib) / "emorl" / RECORD, ROOT / "emorl" / RECORD)


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("emorl._C", sources=[], optional=True)],
        cmdclass={"build_ext": CMakeBuild},
    )
