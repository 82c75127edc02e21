"""Builds the native extension: the environment becomes CMake flags, CMake and Ninja do the rest.

EMORL_CUDA=auto (default), 0 or 1 decides about CUDA; EMORL_CPU=auto (default: what this machine
has), AVX2 or AVX512 about the vectors of the CPU kernels on x86-64; EMORL_SANITIZE=1 is for
`make sanitize`.
What was asked for by name is built, or the build fails. What "auto" finds is given up where it does
not build, CUDA first, then the extension: the package installs, and `emorl info` says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CPUINFO = Path("/proc/cpuinfo")
RECORD = "_build.json"  # beside the extension: what it was built for, or why it is missing
# Read by CMake when it first configures a folder, never again: another choice, another folder.
READ_ONCE = ("CXX", "CXXFLAGS", "CUDAHOSTCXX", "CUDAFLAGS", "LDFLAGS")
# How compilers and linkers say what is wrong, each in one line.
COMPILER_ERROR = re.compile(r"\berror( #\d+)?:|\bfatal *:|undefined reference|cannot find -l")


# What the environment may choose, the default first.
CHOICES = {
    "EMORL_CUDA": ("auto", "0", "1"),
    "EMORL_CPU": ("auto", "AVX2", "AVX512"),
    "EMORL_SANITIZE": ("0", "1"),
}


class CannotBuildError(Exception):
    """The extension cannot be built here, for the reason given."""


def chosen(name: str) -> str:
    """What the environment chooses; the default where it says nothing."""
    *others, last = choices = CHOICES[name]
    choice = os.environ.get(name) or choices[0]
    if choice not in choices:
        raise SystemExit(f"{name}: expected {', '.join(others)} or {last}, got {choice!r}")
    return choice


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
    choice = chosen("EMORL_CUDA")
    if choice == "0":
        return None, "EMORL_CUDA=0"
    if torch_cuda is None:
        obstacle = "this torch is built without CUDA"
    elif nvcc := find_nvcc():
        return nvcc, f"torch is built for CUDA {torch_cuda}"
    else:
        obstacle = "no CUDA toolkit found (set CUDA_HOME)"
    if choice == "1":
        raise CannotBuildError(obstacle)
    return None, obstacle


def decide_cpu() -> str:
    """Instruction set of the CPU kernels, in ATen's words."""
    choice, machine = chosen("EMORL_CPU"), platform.machine()
    if machine not in ("x86_64", "AMD64"):
        if choice != "auto":
            raise CannotBuildError(f"{choice} is x86-64's, this is {machine}")
        return "DEFAULT"
    if choice != "auto":
        return choice
    described = CPUINFO.read_text() if CPUINFO.exists() else ""
    found = {
        word for line in described.splitlines() if line[:5] == "flags" for word in line.split()
    }
    return "AVX512" if found >= {"avx512f", "avx512bw", "avx512dq", "avx512vl"} else "AVX2"


def wish() -> str | None:
    """What was asked for by name, so that nothing less will do; None where "auto" decides."""
    for name in CHOICES:
        if chosen(name) not in ("auto", "0"):
            return f"{name}={chosen(name)}"
    return None


def first_error(output: str) -> str:
    """The line of a failed build's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines()]
    if line := next(filter(COMPILER_ERROR.search, lines), None):
        return line
    if "CMake Error" in output:  # a heading, then indented lines
        error = output[output.index("CMake Error") :]
        return textwrap.shorten(re.sub(r"^CMake Error.*?:\s", "CMake: ", error), 250)
    own = [line for line in lines if line and not line.startswith("ninja:")]
    return own[-1] if own else "no output"


def run(what: str, *command: object) -> None:
    """One step of a build, its output in sight."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "backslashreplace"}
    environment = {**os.environ, "LC_ALL": "C"}  # English, for `first_error`
    output = ""
    with subprocess.Popen([str(x) for x in command], env=environment, text=True, **pipe) as step:
        for line in step.stdout:
            print(line, end="", flush=True)
            output += line
    if step.returncode:
        raise CannotBuildError(f"{what} failed: {first_error(output)}")


def build(flags: dict[str, object], nvcc: str | None) -> None:
    """Configures and compiles, with CUDA where its compiler is given."""
    tools = [flags["EMORL_TORCH"], nvcc, *map(os.environ.get, READ_ONCE)]
    folder = ROOT / "build" / f"native-{hashlib.sha256(repr(tools).encode()).hexdigest()[:8]}"
    flags = {**flags, "EMORL_CUDA": "ON" if nvcc else "OFF"}
    if nvcc:
        flags["CMAKE_CUDA_COMPILER"] = nvcc
    definitions = [f"-D{name}={value}" for name, value in flags.items()]
    cmake, suffix = find_tool("cmake"), " with CUDA" if nvcc else ""
    try:
        run(f"configuring{suffix}", cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *definitions)
    except CannotBuildError:
        shutil.rmtree(folder, ignore_errors=True)  # a later try must look for compilers anew
        raise
    run(f"building{suffix}", cmake, "--build", folder)


class CMakeBuild(build_ext):
    def run(self) -> None:
        """Forgets the last build first: it must not pass for this one, however this one ends."""
        for name in CHOICES:
            chosen(name)  # a slip of the pen costs no build
        sources = [ROOT / "emorl"] if self.inplace else []
        self.packages = [Path(self.build_lib).resolve() / "emorl", *sources]
        for package in self.packages:
            for old in (package / RECORD, *package.glob("_C.*.so")):
                old.unlink(missing_ok=True)
        super().run()

    def build_extension(self, extension: Extension) -> None:
        library = Path(self.get_ext_fullpath(extension.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            record = self.compile(library)
        except CannotBuildError as obstacle:
            record = {"native": False, "reason": str(obstacle)}
        for package in self.packages:
            (package / f"{RECORD}.new").write_text(json.dumps(record, indent=2) + "\n")
            (package / f"{RECORD}.new").replace(package / RECORD)
        if not record["native"]:
            if asked := wish():
                raise SystemExit(f"emorl: {asked}, but {record['reason']}")
            print(f"emorl: installing WITHOUT the native extension: {record['reason']}", flush=True)

    def compile(self, library: Path) -> dict[str, object]:
        torch = find_torch()
        version = runpy.run_path(str(torch / "version.py"))
        nvcc, reason = decide_cuda(version["cuda"])
        print(f"emorl: CUDA {'on' if nvcc else 'off'}: {reason}", flush=True)
        cpu = decide_cpu()
        flags = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": library.parent,
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "EMORL_CAPABILITY": cpu,
            "EMORL_MODULE_FILE": library.name,
            "EMORL_SANITIZE": "ON" if chosen("EMORL_SANITIZE") == "1" else "OFF",
            "EMORL_TORCH": torch,
            "EMORL_TORCH_CUDA": version["cuda"] or "",
            "EMORL_TORCH_VERSION": version["__version__"],
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": find_pybind11(),
        }
        try:
            build(flags, nvcc)
        except CannotBuildError as obstacle:
            if nvcc is None or chosen("EMORL_CUDA") == "1":
                raise
            reason = str(obstacle)
            print(f"emorl: CUDA off: {reason}", flush=True)
            build(flags, None)
        torch_version = str(version["__version__"])
        return {"native": True, "torch": torch_version, "cpu": cpu, "cuda": reason}


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("emorl._C", sources=[], optional=True)],
        cmdclass={"build_ext": CMakeBuild},
    )
